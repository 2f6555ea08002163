"""The agent of one engine rank: its rooms, its links, its memory. Everything runs on one event loop."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import GrantId, RankId, Role, RoomId, WorkerLife
from tandem.core.layout import KvLayout
from tandem.core.pages import I64, rest_of_prompt
from tandem.core.room.events import Broken, PeerAborted, PeerQuiet, Phase, Why
from tandem.engine.measures import RankReport
from tandem.engine.port import OpenRooms, RankInfo, RoomTrace, Ticket
from tandem.engine.rank import open_rooms, wire
from tandem.engine.rank.counters import RankCounters
from tandem.engine.rank.dialer import Dialer
from tandem.engine.rank.handles import Post, ReceiverHandle, RoomHandle, SenderHandle
from tandem.engine.rank.link import KvLink
from tandem.engine.rank.listener import Listener
from tandem.engine.rank.offers import Offer
from tandem.engine.rank.parking import ParkedOffers
from tandem.engine.rank.pools import METADATA_POOL, Pool, PoolMap
from tandem.engine.rank.process_use import process_use
from tandem.engine.rank.receiver_room import ReceiverRoom
from tandem.engine.rank.rooms import RoomShell
from tandem.engine.rank.sender_room import SenderRoom, chunk_of
from tandem.engine.rank.settings import RankSettings
from tandem.engine.rank.staging import DIRECT, Staging
from tandem.rdma import open_endpoint
from tandem.rdma.api import ChunkLanded, ChunkRefused, Direction, LaneEvent, LaneLost
from tandem.rpc.credentials import Credentials, TlsSettings
from tandem.rpc.loop_lag import measure_lag
from tandem.rpc.tasks import TaskSupervisor
from tandem.v1 import kv_link_pb2

log = logging.getLogger(__name__)

MAX_ROOMS: Final = 65_536
"""Most rooms that may be open on a rank."""
DIRECTION_OF_ROLE: Final = {Role.PREFILL: Direction.SEND, Role.DECODE: Direction.RECEIVE}
ENDED_ROOMS: Final = 8_192
"""Ended rooms that are remembered, so that what comes late for them is known as late."""


@dataclass(frozen=True, slots=True)
class RankSetup:
    """What an agent is made of."""

    role: Role
    rank: RankId
    layout: KvLayout
    pools: tuple[Pool, ...]
    settings: RankSettings = field(default_factory=RankSettings.load)
    staging: Staging = DIRECT
    """What lies between `pools`, which the data path moves, and the engine's own. The agent closes it."""


@dataclass(frozen=True, slots=True)
class RoomReport:
    """End of a room on this rank."""

    room: RoomId
    why: Why | None
    kv_bytes: int
    trace: RoomTrace | None = None
    """None where its trace is not sampled."""


def call_now(call: Callable[..., object], *args: object) -> None:
    """The `Post` of an engine that lives on the rank's loop."""
    call(*args)


class RankAgent:
    """Owns the rooms of a rank. Make, `start`, `identify`; then open tickets and hand out handles."""

    def __init__(self, setup: RankSetup, *, on_room_ended: Callable[[RoomReport], None] = lambda _: None) -> None:
        self.setup = setup
        self.pools = PoolMap(setup.layout)
        self.page_size = setup.layout.page_size
        self.staging = setup.staging
        self.counters = RankCounters()
        self.life: WorkerLife | None = None
        self._identified = asyncio.Event()
        self._on_room_ended = on_room_ended
        buffers = [buffer for pool in setup.pools for buffer in pool.buffers]
        self.endpoint = open_endpoint(buffers, setup.settings.endpoint(DIRECTION_OF_ROLE[setup.role], setup.rank.tp))
        self.tasks = TaskSupervisor(max_tasks=8 * MAX_ROOMS)
        self.credentials = Credentials.from_settings(TlsSettings.load())
        self._rooms: dict[RoomId, SenderRoom | ReceiverRoom] = {}
        self._ended: OrderedDict[RoomId, Why | None] = OrderedDict()
        self._early: dict[RoomId, tuple[RoomHandle, asyncio.TimerHandle]] = {}
        self._parked = ParkedOffers(setup.settings.offer_credit, setup.settings.park_timeout_ms, self._unpark_failed)
        self._grants: dict[GrantId, RoomId] = {}
        self._grant_ids = itertools.count(1)
        self._links_up: set[KvLink] = set()
        self._listener = Listener(self) if setup.role is Role.PREFILL else None
        self._dialer = Dialer(self) if setup.role is Role.DECODE else None

    # ------------------------------------------------------------ life

    async def start(self) -> RankInfo:
        """Registers the memory and, on a prefill rank, listens. Returns what to register."""
        await self.endpoint.start()
        self.spawn(measure_lag(self.counters.measures.lag_s.observe), "event loop lag")
        address = await self._listener.start() if self._listener is not None else ""
        return RankInfo(self.setup.rank, address)

    def identify(self, life: WorkerLife) -> None:
        """Takes the worker's name and life; links open only after that."""
        self.life = life
        self._identified.set()
        if self._dialer is not None:
            self._dialer.identified()

    async def wait_identified(self) -> WorkerLife:
        """Waits until the worker is registered; the caller bounds the wait."""
        await self._identified.wait()
        if self.life is None:
            raise TandemError(ErrorReason.NOT_REGISTERED, "the worker is not registered yet")
        return self.life

    async def close(self) -> None:
        """Fails what is left, closes every link and frees the memory. Idempotent."""
        why = Why(ErrorReason.DRAINING, "the rank is closing")
        for room in list(self._rooms.values()):
            room.feed(Broken(why))
        if self._listener is not None:
            await self._listener.close(why)
        if self._dialer is not None:
            await self._dialer.close(why)
        self._parked.clear()
        for _, timer in self._early.values():
            timer.cancel()
        await self.tasks.close()
        await self.endpoint.close()
        await self.staging.close()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Runs work in the background, supervised."""
        self.tasks.spawn(work, name)

    # ------------------------------------------------------------ the service's side

    async def open_ticket(self, ticket: Ticket) -> None:
        """Opens a room.

        Raises TandemError: ROOM_EXISTS, UNKNOWN_ROOM for one that has ended, OVERLOADED for too many.
        """
        if ticket.room in self._rooms:
            raise TandemError(ErrorReason.ROOM_EXISTS, f"room {ticket.room} is open already")
        if ticket.room in self._ended:
            raise TandemError(ErrorReason.UNKNOWN_ROOM, f"room {ticket.room} has ended")
        if len(self._rooms) >= MAX_ROOMS:
            raise TandemError(ErrorReason.OVERLOADED, f"{MAX_ROOMS} rooms are open on this rank")
        room: SenderRoom | ReceiverRoom
        room = SenderRoom(ticket, self) if self.setup.role is Role.PREFILL else ReceiverRoom(ticket, self)
        self._rooms[ticket.room] = room
        self.counters.open_rooms += 1
        if early := self._early.pop(ticket.room, None):
            early[1].cancel()
            room.attach(early[0])
        if isinstance(room, SenderRoom):
            if parked := self._parked.take(ticket.room):
                self.on_offer(*parked)
        elif self._dialer is not None:
            self._dialer.want(ticket.peer, ticket.peer_address, room)

    def abort_room(self, room: RoomId, why: Why) -> bool:
        """Ends a room early. False if it is not open."""
        shell = self._rooms.get(room)
        if shell is None:
            return False
        shell.feed(Broken(why))
        return True

    def peer_joined(self, life: WorkerLife, address: str) -> None:
        """Decode: a prefill worker is there; dial it before it is needed."""
        if self._dialer is not None:
            self._dialer.joined(life, address)

    def peer_gone(self, life: WorkerLife) -> None:
        """A peer's life is over: its links close, its rooms fail."""
        why = Why(ErrorReason.PEER_LOST, f"worker {life} is gone")
        if self._listener is not None:
            self._listener.peer_gone(life, why)
        if self._dialer is not None:
            self._dialer.peer_gone(life, why)
        for room in [room for room in self._rooms.values() if room.ticket.peer == life]:
            room.feed(Broken(why))

    def rooms(self, limit: int) -> OpenRooms:
        """The rooms that have been open for longest."""
        return open_rooms.oldest(self._rooms.values(), self.setup.rank, asyncio.get_running_loop().time(), limit)

    # ------------------------------------------------------------ the engine's side

    def sender(self, room: RoomId) -> SenderHandle:
        """Prefill's hold of a room."""
        handle = SenderHandle(room, self, call_now)
        self.attach(handle)
        return handle

    def receiver(self, room: RoomId) -> ReceiverHandle:
        """Decode's hold of a room."""
        handle = ReceiverHandle(room, self, call_now)
        self.attach(handle)
        return handle

    def attach(self, handle: RoomHandle) -> None:
        """Binds a handle to its room; one whose ticket is not there yet waits for it, bounded."""
        if shell := self._rooms.get(handle.room):
            shell.attach(handle)
        elif handle.room in self._ended:
            handle.update(Phase.FAILED, self._ended[handle.room] or Why(ErrorReason.UNKNOWN_ROOM, "the room has ended"))
        else:
            delay = self.setup.settings.park_timeout_ms / 1000
            timer = asyncio.get_running_loop().call_later(delay, self._never_came, handle)
            self._early[handle.room] = (handle, timer)

    def _never_came(self, handle: RoomHandle) -> None:
        self._early.pop(handle.room, None)
        handle.update(Phase.FAILED, Why(ErrorReason.UNKNOWN_ROOM, f"no ticket was opened for room {handle.room}"))

    def push(
        self,
        room: RoomId,
        kv_pages: npt.ArrayLike,
        state_pages: Sequence[npt.ArrayLike | None],
        last: bool,
        metadata_row: int | None,
        kv_buffers: Sequence[int] | None,
    ) -> None:
        """A chunk of a sender's room is finished."""
        shell = self._rooms.get(room)
        if isinstance(shell, SenderRoom):
            states = [None if pages is None else _index(pages) for pages in state_pages]
            buffers = None if kv_buffers is None else _index(kv_buffers)
            pools = len(self.setup.pools)
            shell.push(chunk_of(_index(kv_pages), states, metadata_row, pools, last=last, kv_buffers=buffers))

    def began(self, room: RoomId, at_s: float) -> None:
        """The engine began to compute a prompt, at a time of the rank's clock."""
        shell = self._rooms.get(room)
        if isinstance(shell, SenderRoom):
            shell.began(at_s)

    def reserve(
        self,
        room: RoomId,
        kv_pages: npt.ArrayLike,
        state_pages: Sequence[npt.ArrayLike | None],
        metadata_row: int,
        decode_prefix_len: int,
    ) -> None:
        """The pages of a receiver's room are reserved."""
        shell = self._rooms.get(room)
        if not isinstance(shell, ReceiverRoom):
            return
        states = [None if pages is None else _index(pages) for pages in state_pages]
        chunk = chunk_of(_index(kv_pages), states, metadata_row, len(self.setup.pools), last=True)
        try:
            writable = self.staging.writable()
        except TandemError as error:
            shell.feed(Broken(wire.why_from(error)))
            return
        if writable is None:
            self._offer(room, chunk.entries, decode_prefix_len)
        else:
            self.spawn(self._offer_after(writable, room, chunk.entries, decode_prefix_len), f"offer of {room}")

    async def _offer_after(
        self, writable: asyncio.Future[None], room: RoomId, entries: Sequence[I64], decode_prefix_len: int
    ) -> None:
        try:
            await writable
        except TandemError as error:
            if shell := self._rooms.get(room):
                shell.feed(Broken(wire.why_from(error)))
            return
        self._offer(room, entries, decode_prefix_len)

    def _offer(self, room: RoomId, entries: Sequence[I64], decode_prefix_len: int) -> None:
        """Offers the entries, unless the room is failing or gone by now."""
        shell = self._rooms.get(room)
        if not isinstance(shell, ReceiverRoom):
            return
        grant_id = GrantId(next(self._grant_ids))
        self._grants[grant_id] = room
        shell.reserved(grant_id, entries, decode_prefix_len)
        if shell.grant_id != grant_id:
            del self._grants[grant_id]  # it was refused

    def forget(self, room: RoomId) -> None:
        """The engine is done with a room; one that has not ended is given up."""
        self.abort_room(room, Why(ErrorReason.CANCELLED, "the engine dropped the room"))

    def report(self) -> RankReport:
        """What the rank has measured, and how its rooms stand."""
        now, rooms = asyncio.get_running_loop().time(), self._rooms.values()
        return RankReport(
            rank=self.setup.rank,
            rooms=Counter(room.state for room in rooms),
            rooms_overdue=sum(room.ticket.deadline < now for room in rooms),
            oldest_room_s=max((now - room.opened_s for room in rooms), default=0.0),
            queue_pairs_replaced=self.endpoint.queue_pairs_replaced,
            process=process_use(),
            measures=self.counters.measures,
        )

    # ------------------------------------------------------------ rooms and links

    def room_ended(self, room: RoomShell, why: Why | None) -> None:
        """A room reached its terminal state."""
        self._rooms.pop(room.room, None)
        self._grants.pop(GrantId(room.grant_id), None)
        self._ended[room.room] = why
        if len(self._ended) > ENDED_ROOMS:
            self._ended.popitem(last=False)
        self.counters.open_rooms -= 1
        if why is None:
            self.counters.rooms_succeeded += 1
            self.counters.measures.rooms_succeeded += 1
        else:
            self.counters.rooms_failed += 1
            self.counters.measures.rooms_failed[why.reason.value] += 1
            log.info("%s failed: %s: %s", room.label, why.reason.value, why.message, extra=room.log_ids)
        self._on_room_ended(RoomReport(room.room, why, room.bytes_moved, room.trace(self.setup.rank)))

    def link_up(self, link: KvLink) -> None:
        """A link and its lane are there."""
        self.counters.links[link.peer.worker_id] = link.provider
        link.measures = self.counters.measures.peer(link.peer.worker_id, link.provider)
        link.measures.links_opened += 1
        self._links_up.add(link)
        link.measures.links += 1
        log.info("link %d to %s is up over %s", link.epoch, link.peer, link.provider)

    async def link_down(self, link: KvLink, why: Why) -> None:
        """A link is gone. Its lane is closed first; then its rooms fail, with nothing in flight."""
        if link in self._links_up:
            self._links_up.remove(link)
            link.measures.links -= 1
            if all(other.peer.worker_id != link.peer.worker_id for other in self._links_up):
                self.counters.links.pop(link.peer.worker_id, None)
        await link.close(why)
        for room in [self._rooms[room] for room in list(link.rooms) if room in self._rooms]:
            room.feed(Broken(why))

    def on_lane_event(self, link: KvLink, event: LaneEvent) -> None:
        """News of a lane."""
        match event:
            case ChunkLanded():
                link.measures.landed(event.bytes)
                room = self._rooms.get(self._grants.get(event.grant_id, RoomId(0)))
                if isinstance(room, ReceiverRoom):
                    room.seen(event)
                else:
                    self.counters.stale_messages += 1
            case ChunkRefused(grant_id, _, error):
                self.counters.stale_messages += 1
                log.warning("link %d: refused a write under grant %d: %s", link.epoch, grant_id, error)
            case LaneLost(error):
                self.spawn(self.link_down(link, wire.why_from(error)), f"lane of link {link.epoch} lost")

    # ------------------------------------------------------------ messages

    def on_offer(self, link: KvLink, offer: Offer) -> None:
        """Prefill: decode granted pages. Refused offers are answered with an abort of their grant."""
        room = self._rooms.get(offer.room)
        if room is None and offer.room not in self._ended:
            if not self._parked.put(link, offer):
                self._refuse(link, offer, Why(ErrorReason.OVERLOADED, "too many offers wait for their tickets"))
        elif not isinstance(room, SenderRoom):
            self._refuse(link, offer, Why(ErrorReason.UNKNOWN_ROOM, f"room {offer.room} has ended"))
        elif link.peer != room.ticket.peer:
            self._refuse(link, offer, Why(ErrorReason.STALE_INCARNATION, f"the room belongs to {room.ticket.peer}"))
        elif not hmac.compare_digest(offer.nonce, room.ticket.nonce):
            self._refuse(link, offer, Why(ErrorReason.BAD_NONCE, "the nonce of the offer is not the room's"))
        else:
            try:
                rest_of_prompt(room.ticket.prompt_tokens, offer.decode_prefix_len, self.page_size)
                granted = offer.unpack(link.peer_pools, len(self.setup.pools))
            except TandemError as error:
                self._refuse(link, offer, wire.why_from(error))
                return
            room.offered(link, offer.grant_id, granted, offer.decode_prefix_len)

    def _unpark_failed(self, link: KvLink, offer: Offer) -> None:
        self._refuse(link, offer, Why(ErrorReason.UNKNOWN_ROOM, f"no ticket was opened for room {offer.room}"))

    def _refuse(self, link: KvLink, offer: Offer, why: Why) -> None:
        self.refuse_offer(link, offer.room, offer.grant_id, why)

    def refuse_offer(self, link: KvLink, room: RoomId, grant_id: GrantId, why: Why) -> None:
        """Prefill: tells decode that a grant is not used."""
        self.counters.stale_messages += 1
        link.send_abort(room, grant_id, why)

    def on_landed(self, link: KvLink, message: kv_link_pb2.Landed) -> None:
        """Prefill: decode verified a room."""
        room = self._room_of(link, message.room)
        if isinstance(room, SenderRoom):
            room.landed(GrantId(message.grant_id))

    def on_chunk_done(self, link: KvLink, message: kv_link_pb2.ChunkDone) -> None:
        """Decode: prefill wrote a chunk."""
        room = self._room_of(link, message.room)
        if isinstance(room, ReceiverRoom):
            room.claimed(message)

    def on_complete(self, link: KvLink, message: kv_link_pb2.Complete) -> None:
        """Decode: prefill wrote every chunk."""
        room = self._room_of(link, message.room)
        if isinstance(room, ReceiverRoom):
            room.completed(message)

    def on_abort(self, link: KvLink, message: kv_link_pb2.LinkAbort) -> None:
        """The other side gave a room up. One that is not open is answered at once: this side is quiet."""
        self.counters.measures.aborts_received += 1
        room = self._rooms.get(RoomId(message.room))
        if room is None or room.link is not link:
            link.send_abort_ack(RoomId(message.room), message.grant_id)
        elif message.grant_id in (0, room.grant_id):
            room.feed(PeerAborted(wire.why_of_peer(message.failure)))

    def on_abort_ack(self, link: KvLink, message: kv_link_pb2.AbortAck) -> None:
        """The other side is quiet."""
        room = self._rooms.get(RoomId(message.room))
        if room is not None and room.link is link:
            room.feed(PeerQuiet())

    def _room_of(self, link: KvLink, room: int) -> RoomShell | None:
        shell = self._rooms.get(RoomId(room))
        if shell is None or shell.link is not link:
            self.counters.stale_messages += 1
            return None
        return shell


def _index(pages: npt.ArrayLike) -> I64:
    return np.ascontiguousarray(pages, dtype=np.int64)


__all__ = ["METADATA_POOL", "Post", "RankAgent", "RankSetup", "RoomReport"]
