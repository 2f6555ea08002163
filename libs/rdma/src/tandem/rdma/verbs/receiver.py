"""Receiver's end of a verbs lane: keeps the grants, and counts tags.

No thread and no processor copies anything here: the peer's device writes into this process' memory. What the lane sees
of a write is its announcement, and one completion for each piece, which carries the piece's tag and comes after the
piece's last byte. They come in either order.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import GrantId
from tandem.rdma.api import U64, ChunkLanded, ChunkRefused, Grant, LaneEvent, LaneLost, OnEvent
from tandem.rdma.faults import Faults
from tandem.rdma.grants import GrantTable, OpenGrant
from tandem.rdma.verbs import control
from tandem.rdma.verbs.completions import Completion
from tandem.rdma.verbs.control import ControlConnection, Message, Side
from tandem.rdma.verbs.hashing import ChunkHash
from tandem.rdma.verbs.parts import LaneParts
from tandem.rdma.verbs.plan import bytes_of_piece, piece_count
from tandem.rdma.verbs.queue_pair import QueueShape
from tandem.rdma.verbs.rail import Rail, RailParts

_TAGS: Final = 1 << 32
_AGAIN_S: Final = 1.0
"""A rail that could not be connected is made anew after this delay, if there is another."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Incoming:
    """A write that was announced."""

    message: control.WriteOpened
    grant: OpenGrant
    landed: npt.NDArray[np.bool_]
    """Per piece."""
    left: int
    checksum: ChunkHash | None
    first_address: int

    def landed_bytes(self) -> int:
        """Bytes that have landed without a gap from the start."""
        pieces = self.landed.size if self.landed.all() else int(self.landed.argmin())
        return min(self.message.total, pieces * self.message.piece_bytes)


class LaneGrant:
    """The `Grant` that the lane hands out."""

    def __init__(self, grant: OpenGrant, quiesce: Callable[[GrantId], asyncio.Future[None]]) -> None:
        self._grant = grant
        self._quiesce = quiesce
        self._quiet: asyncio.Future[None] | None = None

    @property
    def grant_id(self) -> GrantId:
        """Its number."""
        return self._grant.grant_id

    @property
    def bytes_landed(self) -> int:
        """Bytes of the pieces that landed."""
        return self._grant.bytes_landed

    async def revoke(self) -> None:
        """Closes the grant. Returns only when no byte can land under it any more: when the sender has said that it
        is quiet, else when the lane's queue pairs are destroyed. Idempotent.
        """
        self._grant.close()
        if self._quiet is None:
            self._quiet = self._quiesce(self.grant_id)
        await asyncio.shield(self._quiet)


class VerbsReceiverLane:
    """The `ReceiverLane`."""

    provider = "verbs"

    def __init__(
        self, parts: LaneParts, sock: socket.socket, on_event: OnEvent, on_gone: Callable[[VerbsReceiverLane], None]
    ) -> None:
        self._parts = parts
        self._settings = parts.settings.verbs
        self._on_event = on_event
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._grants = GrantTable(parts.memory)
        self._faults = Faults(parts.settings.faults)
        self._rails: list[Rail] = []
        self._unconnected: set[int] = set()
        """Rails that could not be connected when that was tried last."""
        self._credit: list[int] = []
        """Receive requests posted again and not told, per rail."""
        self._writes: dict[int, Incoming] = {}
        """By first tag."""
        self._tags: dict[int, tuple[Incoming, int]] = {}
        """Write and piece by tag, for tags that have not come."""
        self._early: dict[int, list[tuple[Rail, int]]] = {}
        """Tags that came before their write was announced: the rail and its life that each came over."""
        self._next_tag: int | None = None
        """The tag after the last that was announced."""
        self._next_due = 0.0
        """When the next piece is looked at, in the loop's seconds; only if a fault makes pieces slow."""
        self._quiet: dict[GrantId, asyncio.Future[None]] = {}
        self._up: asyncio.Future[None] = self._loop.create_future()
        self._lost: TandemError | None = None
        self._closing = False
        self._gone = asyncio.Event()
        self._control = ControlConnection(sock, self._on_message, self._lose)
        self.send(
            Side(
                tuple(device.address for device in parts.devices),
                parts.memory.table(),
                np.stack(parts.keys) if parts.keys else np.empty((0, 0), np.uint32),
            )
        )

    async def opened(self) -> None:
        """Waits until a rail is up; the caller bounds the wait. Raises TandemError if the lane is lost before."""
        await asyncio.shield(self._up)

    # ------------------------------------------------------------ grants

    def grant(self, grant_id: GrantId, offsets: U64, lengths: U64) -> Grant:
        """See `ReceiverLane.grant`."""
        if self._closing or self._lost:
            raise self._lost or TandemError(ErrorReason.LINK_LOST, "the lane is closed")
        grant = self._grants.open(grant_id, offsets, lengths)
        self.send(control.GrantOpened(grant_id, grant.extent.starts, grant.extent.ends))
        return LaneGrant(grant, self._quiesce)

    def _quiesce(self, grant_id: GrantId) -> asyncio.Future[None]:
        return asyncio.ensure_future(self._until_quiet(grant_id))

    async def _until_quiet(self, grant_id: GrantId) -> None:
        if not self._ending:
            await self._ask_for_quiet(grant_id)
        if self._ending:
            await self._gone.wait()

    async def _ask_for_quiet(self, grant_id: GrantId) -> None:
        said = self._quiet[grant_id] = self._loop.create_future()
        self.send(control.GrantRevoked(grant_id))
        try:
            async with asyncio.timeout(self._parts.settings.fence_ms / 1000):
                await said
        except TimeoutError:
            _log.warning("the sender did not quiet grant %d in time: its lane is fenced", grant_id)
            await asyncio.gather(*(rail.fence() for rail in self._rails))
        finally:
            self._quiet.pop(grant_id, None)

    # ------------------------------------------------------------ messages

    def send(self, message: Message) -> None:
        """Tells the sender."""
        self._control.send(message)

    def _on_message(self, message: Message) -> None:
        if self._faults.stalled:
            return  # as if it were never read
        match message:
            case Side():
                self._meet(message)
            case control.QueuePairReady(rail):
                self._rail(rail).on_queue_pair(message)
            case control.RailReady(rail):
                self._rail(rail).on_ready(message)
            case control.RailDown(rail):
                self._rail(rail).on_down(message)
            case control.GrantAsked(grant_id):
                if not self._grants.has(grant_id):
                    self.send(control.GrantUnknown(grant_id))
            case control.GrantQuiet(grant_id):
                if (said := self._quiet.get(grant_id)) and not said.done():
                    said.set_result(None)
            case control.WriteOpened():
                self._open(message)
            case control.WriteEnded():
                self._ended(message)
            case _:
                raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"a sender does not say {type(message).__name__}")

    def _meet(self, side: Side) -> None:
        if self._rails or len(side.rails) > len(self._parts.devices):
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "the sender shows itself twice, or too many rails")
        shape = QueueShape(1, self._settings.receive_depth, remote_write=True)
        for index, address in enumerate(side.rails):
            rail = Rail(RailParts(index, self._parts.devices[index], address, shape), self)
            self._rails.append(rail)
            self._credit.append(0)
            rail.open()

    def _rail(self, index: int) -> Rail:
        if index >= len(self._rails):
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"rail {index} of {len(self._rails)}")
        return self._rails[index]

    def _open(self, message: control.WriteOpened) -> None:
        pieces = piece_count(message.total, message.piece_bytes)
        tags = [(message.first_tag + piece) % _TAGS for piece in range(pieces)]
        self._next_tag = (message.first_tag + pieces) % _TAGS
        try:
            grant = self._grants.admit(message.grant_id, message.dst, message.lengths)
        except TandemError as error:
            if error.reason is not ErrorReason.GRANT_CLOSED:
                raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"the sender writes out of grant: {error}") from error
            self._event(ChunkRefused(message.grant_id, message.chunk, error))  # it was closed a moment ago
        else:
            self._begin(message, grant, pieces)
        for _piece, tag in enumerate(tags):
            for rail, life in self._early.pop(tag, ()):
                self._take(tag, rail, life)

    def _begin(self, message: control.WriteOpened, grant: OpenGrant, pieces: int) -> None:
        memory, checksum = self._parts.memory, None
        address = int(memory.iov(message.dst[:1], message.lengths[:1])[0, 0]) if pieces else 0
        write = Incoming(message, grant, np.zeros(pieces, bool), pieces, None, address)
        if self._parts.settings.checksum:
            checksum = write.checksum = ChunkHash(
                self._parts.threads, memory, message.dst, message.lengths, lambda: self._see_end(write)
            )
        self._writes[message.first_tag] = write
        for piece in range(pieces):
            self._tags[(message.first_tag + piece) % _TAGS] = (write, piece)
        if checksum is not None:
            checksum.advance(0)
        self._see_end(write)

    def _ended(self, message: control.WriteEnded) -> None:
        """The sender gave a write up, or refused it at its end."""
        write = self._drop(message.first_tag) if message.opened else None
        if message.reason is not None and (write is not None or not message.opened):
            error = TandemError(message.reason, f"the sender ended the write: {message.reason.value}")
            self._event(ChunkRefused(message.grant_id, message.chunk, error))

    # ------------------------------------------------------------ tags

    def completed(self, rail: Rail, completion: Completion) -> None:
        """A receive request was used: a piece has landed."""
        if completion.status != rail.device.library.IBV_WC_SUCCESS:
            if rail.up:
                rail.renew()
            return
        if self._faults.stalled:
            return
        if self._faults.pace_ms:
            self._next_due = max(self._next_due, self._loop.time()) + self._faults.pace_ms / 1000
            self._loop.call_at(self._next_due, self._take, completion.imm, rail, rail.life)
            return
        self._take(completion.imm, rail, rail.life)

    def _take(self, tag: int, rail: Rail, life: int) -> None:
        if self._next_tag is None or (tag - self._next_tag) % _TAGS < _TAGS // 2:
            # Bounded by the receive requests of a life: this one is not posted again yet.
            self._early.setdefault(tag, []).append((rail, life))
            return
        if rail.up and rail.life == life:
            self._post_again(rail)
        found = self._tags.pop(tag, None)
        if found is None:
            return  # posted twice, after a rail broke; or of a write that has ended
        write, piece = found
        message, grant = write.message, write.grant
        size = bytes_of_piece(message.total, message.piece_bytes, piece)
        if not grant.enter():
            self._drop(message.first_tag)
            error = TandemError(ErrorReason.GRANT_CLOSED, f"grant {message.grant_id} was closed")
            self._event(ChunkRefused(message.grant_id, message.chunk, error))
            return
        self._faults.after_landing(message.chunk, write.first_address, piece == 0, size)
        grant.leave(size)
        write.landed[piece] = True
        write.left -= 1
        if write.checksum is not None:
            write.checksum.advance(write.landed_bytes())
        self._see_end(write)

    def _see_end(self, write: Incoming) -> None:
        message, checksum = write.message, write.checksum
        if write.left or self._writes.get(message.first_tag) is not write:
            return
        if checksum is not None and (checksum.busy or checksum.position < message.total):
            return
        value = checksum.hasher.value() if checksum is not None and checksum.hasher is not None else None
        self._drop(message.first_tag)
        self._event(ChunkLanded(message.grant_id, message.chunk, message.total, value))

    def _drop(self, first_tag: int) -> Incoming | None:
        write = self._writes.pop(first_tag, None)
        if write is not None:
            for piece in range(write.landed.size):
                self._tags.pop((first_tag + piece) % _TAGS, None)
            if write.checksum is not None:
                write.checksum.stop()
        return write

    def _post_again(self, rail: Rail) -> None:
        assert rail.queue_pair is not None
        try:
            rail.queue_pair.post_receives(1)
        except rail.device.library.PyverbsError as error:
            _log.warning("rail %d: no receive request could be posted: %s", rail.index, error)
            rail.renew()
            return
        self._credit[rail.index] += 1
        # The sender has at least as many left as it is not told of: it never waits for these.
        if 2 * self._credit[rail.index] >= self._settings.receive_depth:
            self.send(control.Credit(rail.index, rail.life, self._credit[rail.index]))
            self._credit[rail.index] = 0

    # ------------------------------------------------------------ rails

    def rail_up(self, rail: Rail) -> None:
        """See `RailUser`."""
        self._credit[rail.index] = 0
        self._unconnected.discard(rail.index)
        if not self._up.done():
            self._up.set_result(None)

    def rail_down(self, rail: Rail) -> None:
        """See `RailUser`: what has landed there has landed."""

    def rail_lost(self, rail: Rail, error: TandemError) -> None:
        """See `RailUser`: it is tried again, as long as there is another."""
        _log.warning("rail %d of %s can't be connected: %s", rail.index, rail.device.name, error.message)
        self._unconnected.add(rail.index)
        if len(self._unconnected) == len(self._rails):
            self._lose(error)
        else:
            rail.renew(_AGAIN_S)

    # ------------------------------------------------------------ ending

    @property
    def _ending(self) -> bool:
        return self._closing or self._lost is not None

    async def close(self) -> None:
        """Revokes every grant and closes. Returns only when no byte can land over the lane any more. Idempotent."""
        if not self._ending:
            self._closing = True
            await self._end()
        self._closing = True
        await self._gone.wait()

    def _lose(self, error: TandemError) -> None:
        if not self._ending:
            self._lost = error
            self._parts.spawn(self._end())

    async def _end(self) -> None:
        for rail in self._rails:
            await rail.close()
        await self._control.close()
        for first_tag in list(self._writes):
            self._drop(first_tag)
        await self._grants.revoke_all()
        error = self._lost or TandemError(ErrorReason.LINK_LOST, "the lane is closed")
        was_open = self._up.done()
        if not was_open:
            self._up.set_exception(error)
            self._up.exception()  # whoever waits for it gets it; perhaps nobody does
        for said in self._quiet.values():
            if not said.done():
                said.set_result(None)
        self._gone.set()
        self._on_gone(self)
        if not self._closing and was_open:
            _log.warning("verbs lane lost: %s", error.message)
            self._on_event(LaneLost(error))

    def _event(self, event: LaneEvent) -> None:
        if not self._ending:
            self._on_event(event)
