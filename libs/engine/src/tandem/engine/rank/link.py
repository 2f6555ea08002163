"""One KvLink: a bounded outbox in front of one gRPC stream, and the lane that belongs to it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import LinkEpoch, RankId, RoomId, WorkerLife
from tandem.core.room.events import Why
from tandem.core.version import Feature
from tandem.engine.measures import PeerMeasures
from tandem.engine.rank import wire
from tandem.engine.rank.pools import PoolMap
from tandem.rdma.api import ReceiverLane, SenderLane
from tandem.rpc.options import MAX_MESSAGE_BYTES
from tandem.v1 import kv_link_pb2

log = logging.getLogger(__name__)


class KvLink:
    """One life of a link. Sending never blocks: what does not fit the outbox fails the room, not the loop."""

    def __init__(
        self,
        peer: WorkerLife,
        peer_rank: RankId,
        epoch: LinkEpoch,
        message: type[kv_link_pb2.LinkRequest] | type[kv_link_pb2.LinkResponse],
        peer_pools: PoolMap,
        outbox_limit: int,
    ) -> None:
        self.peer = peer
        self.peer_rank = peer_rank
        self.epoch = epoch
        self.peer_pools = peer_pools
        self.sender_lane: SenderLane | None = None
        self.receiver_lane: ReceiverLane | None = None
        self.down: Why | None = None
        """Why the link is no more; None while it is up."""
        self.rooms: set[RoomId] = set()
        """Rooms that use it."""
        self.features = Feature.NONE
        """Decode: what both sides may use, as their Hellos say."""
        self.offer_credit = 0
        """Decode: offers that may be open at the same time, as prefill said."""
        self.open_offers = 0
        """Decode: offers that are open."""
        self.measures = PeerMeasures()
        """What goes over it; the agent counts it in once the link is up."""
        self._message: Callable[..., Any] = message
        self._outbox: deque[Iterator[Any]] = deque()
        """Messages; those of one entry follow each other, with nothing but urgent ones between them."""
        self._limit = outbox_limit
        self._wake = asyncio.Event()
        self._heard = asyncio.get_running_loop().time()

    @property
    def provider(self) -> str:
        """Name of its data provider."""
        lane = self.sender_lane or self.receiver_lane
        return lane.provider if lane else ""

    def send(self, *, urgent: bool = False, **message: Any) -> None:
        """Queues one message, given as the field of the oneof. Urgent ones (aborts, pings) overtake and always fit.

        Raises TandemError(LINK_LOST) on a link that is down, TandemError(OVERLOADED) if the outbox is full.
        """
        if not urgent:
            self._require_room()
        elif self.down is not None:
            raise TandemError(ErrorReason.LINK_LOST, self.down.message)
        packed = self._message(link_epoch=self.epoch, **message)
        if packed.ByteSize() > MAX_MESSAGE_BYTES:
            raise TandemError(
                ErrorReason.NOT_SUPPORTED, f"a message of {packed.ByteSize()} bytes; one holds {MAX_MESSAGE_BYTES}"
            )
        if urgent:
            self._outbox.appendleft(iter((packed,)))
        else:
            self._outbox.append(iter((packed,)))
        self._wake.set()

    def send_offer(self, parts: Iterable[kv_link_pb2.OfferPages]) -> None:
        """Queues an offer. It has one place in the outbox; each part is made when the stream takes it.

        Raises TandemError as `send` does.
        """
        self._require_room()
        self._outbox.append(self._message(link_epoch=self.epoch, offer=part) for part in parts)
        self._wake.set()

    def _require_room(self) -> None:
        if self.down is not None:
            raise TandemError(ErrorReason.LINK_LOST, self.down.message)
        if len(self._outbox) >= self._limit:
            raise TandemError(ErrorReason.OVERLOADED, f"{self._limit} messages wait for {self.peer} already")

    def send_abort(self, room: RoomId, grant_id: int, why: Why) -> None:
        """Ends a room on the other side; nothing happens if the link is down, since that ends it too."""
        if self.down is None:
            abort = kv_link_pb2.LinkAbort(room=room, grant_id=grant_id, failure=wire.failure(why))
            self.send(urgent=True, abort=abort)

    def send_abort_ack(self, room: RoomId, grant_id: int) -> None:
        """Tells the other side that this side is quiet."""
        if self.down is None:
            self.send(urgent=True, abort_ack=kv_link_pb2.AbortAck(room=room, grant_id=grant_id))

    async def live(
        self,
        read: Coroutine[Any, Any, None],
        write: Callable[[Any], Awaitable[Any]],
        *,
        ping_interval_ms: int,
        ping_timeout_ms: int,
        ask: bool,
    ) -> set[asyncio.Task[None]]:
        """Reads, writes and watches the stream until one of them ends; returns those that did, with how they ended."""
        parts = {
            asyncio.create_task(read),
            asyncio.create_task(self.pump(write)),
            asyncio.create_task(self.watch(ping_interval_ms, ping_timeout_ms, ask=ask)),
        }
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            return done
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def pump(self, write: Callable[[Any], Awaitable[Any]]) -> None:
        """Writes the outbox to the stream until the link is down."""
        while self.down is None:
            self._wake.clear()
            while self._outbox:
                entry = self._outbox.popleft()
                if (message := next(entry, None)) is not None:
                    self._outbox.appendleft(entry)
                    await write(message)
            await self._wake.wait()

    def heard(self) -> None:
        """A message came in."""
        self._heard = asyncio.get_running_loop().time()

    def answer_ping(self, ping: kv_link_pb2.Ping) -> None:
        """Echoes a question; an echo needs no answer."""
        if not ping.reply and self.down is None:
            self.send(urgent=True, ping=kv_link_pb2.Ping(id=ping.id, reply=True))

    async def watch(self, interval_ms: int, timeout_ms: int, *, ask: bool) -> None:
        """Returns once the peer was silent for timeout_ms; with `ask`, pings it every interval_ms."""
        loop = asyncio.get_running_loop()
        count = 0
        while (left := self._heard + timeout_ms / 1000 - loop.time()) > 0:
            if ask:
                count += 1
                self.send(urgent=True, ping=kv_link_pb2.Ping(id=count))
            await asyncio.sleep(min(left, interval_ms / 1000) if ask else left)

    async def close(self, why: Why) -> None:
        """Marks the link as down and closes its lane: no byte lands over it any more. Idempotent."""
        if self.down is None:
            log.info("link %d to %s is down: %s", self.epoch, self.peer, why.message)
            self.down = why
        self._wake.set()
        if self.sender_lane is not None:
            await self.sender_lane.close()
        if self.receiver_lane is not None:
            await self.receiver_lane.close()
