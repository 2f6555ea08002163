"""Doubles of engine ranks: the bytes are moved for real, between the pools of two engines in this process."""

from __future__ import annotations

import asyncio
import ctypes
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RankId, Role, RoomId, WorkerLife
from tandem.core.layout import KvLayout
from tandem.core.room.events import Phase, Why
from tandem.engine.measures import ProcessUse, RankReport
from tandem.engine.port import OpenRooms, RankInfo, Ticket
from tandem.engine.rank.counters import RankCounters
from tandem.engine.rank.pools import Pool

OVER = (Phase.SUCCESS, Phase.FAILED)


def view(pool: Pool, buffer: int) -> np.ndarray:
    """Bytes [entries, item] of one buffer of a pool."""
    found = pool.buffers[buffer]
    raw = (ctypes.c_uint8 * found.bytes).from_address(found.address)
    return np.frombuffer(raw, dtype=np.uint8).reshape(pool.entries, pool.item_bytes[buffer])


@dataclass
class Landing:
    """What landed on one decode rank: a test may spoil it before decode looks."""

    room: RoomId
    rank: RankId
    kv: list[np.ndarray]
    """Bytes [pages of the pool, item] of each KV buffer."""
    pages: np.ndarray
    """The granted pages, in token order."""
    row: np.ndarray
    """Bytes of the metadata row."""

    def page(self, place: int) -> bytes:
        """All bytes of the room's page at `place`, buffer by buffer."""
        return b"".join(plane[self.pages[place]].tobytes() for plane in self.kv)


@dataclass
class Wire:
    """Joins the ranks of a prefill and of a decode engine."""

    linked: bool = True
    """False: no link comes up."""
    holding: bool = False
    """True: nothing lands, and a room that is given up does not get quiet."""
    hold_pushes: bool = False
    """True: the hold begins with the next push."""
    spoil: Callable[[Landing], None] | None = None
    refuse_tickets: tuple[Role, RankId] | None = None
    grants: dict[RoomId, np.ndarray] = field(default_factory=dict)
    pushes: list[tuple[RoomId, RankId, int, bool]] = field(default_factory=list)
    """Room, rank, pages and last, of each push."""
    rooms: dict[tuple[Role, RankId, RoomId], RoomDouble] = field(default_factory=dict)
    held: list[Callable[[], None]] = field(default_factory=list)

    def make(self, role: Role, rank: RankId, layout: KvLayout, pools: tuple[Pool, ...]) -> RankDouble:
        """As tandem.engine.mock.rank_port.MakeRank wants it."""
        return RankDouble(self, role, rank, pools)

    def soon(self, call: Callable[[], None]) -> None:
        """Runs it in the next turn of the loop, or once the hold is over."""
        if self.holding:
            self.held.append(call)
        else:
            asyncio.get_running_loop().call_soon(call)

    def release(self) -> None:
        """Ends the hold."""
        self.holding = self.hold_pushes = False
        held, self.held = self.held, []
        for call in held:
            call()

    def other(self, room: RoomDouble) -> RoomDouble | None:
        """The other side of a room."""
        role = Role.DECODE if room.host.role is Role.PREFILL else Role.PREFILL
        return self.rooms.get((role, room.host.rank, room.room))


class RankDouble:
    """One rank."""

    def __init__(self, wire: Wire, role: Role, rank: RankId, pools: tuple[Pool, ...]) -> None:
        self.wire, self.role, self.rank, self.pools = wire, role, rank, pools
        self.counters = RankCounters()
        self.life: WorkerLife | None = None
        self.joined: list[tuple[WorkerLife, str]] = []
        self.closed = False

    async def start(self) -> RankInfo:
        return RankInfo(self.rank, "double:1" if self.role is Role.PREFILL else "")

    async def close(self) -> None:
        self.closed = True
        for room in [room for room in self.wire.rooms.values() if room.host is self]:
            room.turn(Phase.FAILED, Why(ErrorReason.DRAINING, "the rank closed"))

    def identify(self, life: WorkerLife) -> None:
        self.life = life

    async def open_ticket(self, ticket: Ticket) -> None:
        await asyncio.sleep(0)
        if self.wire.refuse_tickets == (self.role, self.rank):
            raise TandemError(ErrorReason.OVERLOADED, "the rank takes no tickets")
        room = RoomDouble(self, ticket)
        self.wire.rooms[(self.role, self.rank, ticket.room)] = room
        self.counters.open_rooms += 1
        other = self.wire.other(room)
        offered = other is not None and other.offered is not None
        if offered or (self.role is Role.DECODE and self.wire.linked):
            asyncio.get_running_loop().call_soon(room.turn, Phase.WAITING, None)

    def rooms(self, limit: int) -> OpenRooms:
        return OpenRooms()

    def abort_room(self, room: RoomId, why: Why) -> bool:
        found = self.wire.rooms.get((self.role, self.rank, room))
        if found is None or found.phase in OVER:
            return False
        found.abort(why.reason, why.message)
        return True

    def peer_joined(self, life: WorkerLife, address: str) -> None:
        self.joined.append((life, address))

    def peer_gone(self, life: WorkerLife) -> None:
        for room in [room for room in self.wire.rooms.values() if room.host is self and room.ticket.peer == life]:
            room.abort(ErrorReason.PEER_LOST, f"worker {life} is gone")

    def sender(self, room: RoomId) -> RoomDouble:
        return self.wire.rooms[(self.role, self.rank, room)]

    receiver = sender

    def report(self) -> RankReport:
        rooms = Counter({"double": self.counters.open_rooms})
        return RankReport(self.rank, rooms, 0, 0.0, 0, ProcessUse(0.0, 0, 0), self.counters.measures)


class RoomDouble:
    """One side of a room on one rank, sender or receiver."""

    def __init__(self, host: RankDouble, ticket: Ticket) -> None:
        self.host, self.ticket, self.room, self.wire = host, ticket, ticket.room, host.wire
        self.phase = Phase.BOOTSTRAPPING
        self.why: Why | None = None
        self.on_change: Callable[[], None] | None = None
        self.decode_prefix_len = 0
        self.offered: tuple[np.ndarray, int] | None = None
        self.filled = [0] * len(host.pools[0].buffers)
        """Granted entries that are written, per buffer."""
        self.cleared = False
        self.giving_up = False

    def turn(self, phase: Phase, why: Why | None) -> None:
        """Changes the phase."""
        if self.phase in OVER or phase is self.phase or (why is None and self.giving_up):
            return
        self.phase, self.why = phase, why
        if phase in OVER:
            self.host.counters.open_rooms -= 1
            if self.offered is not None and self.host.role is Role.DECODE:
                self.host.counters.granted_pages -= self.offered[0].size
                self.host.counters.granted_rows -= 1
        if self.on_change is not None:
            self.on_change()

    def offer(self, kv_pages, state_pages=(), *, metadata_row: int, decode_prefix_len: int = 0) -> None:
        assert self.phase is Phase.WAITING
        self.offered = (np.asarray(kv_pages), metadata_row)
        self.decode_prefix_len = decode_prefix_len
        self.host.counters.granted_pages += self.offered[0].size
        self.host.counters.granted_rows += 1
        if (sender := self.wire.other(self)) is not None:
            sender.decode_prefix_len = decode_prefix_len
            self.wire.soon(lambda: sender.turn(Phase.WAITING, None))

    def began(self, at_s: float) -> None:
        """Notes nothing."""

    def push(self, kv_pages, state_pages=(), *, last: bool, metadata_row=None, kv_buffers=None) -> None:
        pages = np.asarray(kv_pages).copy()
        self.wire.pushes.append((self.room, self.host.rank, pages.size, last))
        self.turn(Phase.TRANSFERRING, None)
        self.wire.holding = self.wire.holding or self.wire.hold_pushes
        buffers = range(len(self.host.pools[0].buffers)) if kv_buffers is None else kv_buffers
        self.wire.soon(lambda: self._land(pages, last, metadata_row, buffers))

    def _land(self, pages: np.ndarray, last: bool, row: int | None, buffers: Iterable[int]) -> None:
        receiver = self.wire.other(self)
        if receiver is None or receiver.phase in OVER or self.phase in OVER:
            return
        receiver.turn(Phase.TRANSFERRING, None)
        granted, granted_row = receiver.offered
        for buffer in buffers:
            first = receiver.filled[buffer]
            receiver.filled[buffer] = first + pages.size
            theirs = granted[first : receiver.filled[buffer]]
            view(receiver.host.pools[0], buffer)[theirs] = view(self.host.pools[0], buffer)[pages]
        receiver.host.counters.kv_chunks += 1
        receiver.host.counters.kv_bytes += pages.size * sum(self.host.pools[0].item_bytes[one] for one in buffers)
        if last:
            assert set(receiver.filled) == {granted.size}
            rows = view(receiver.host.pools[1], 0)
            rows[granted_row] = view(self.host.pools[1], 0)[row]
            if self.wire.spoil is not None:
                planes = [view(receiver.host.pools[0], buffer) for buffer in range(len(receiver.host.pools[0].buffers))]
                self.wire.spoil(Landing(self.room, receiver.host.rank, planes, granted, rows[granted_row]))
            receiver.turn(Phase.SUCCESS, None)
            self.wire.soon(lambda: self.turn(Phase.SUCCESS, None))

    def abort(self, reason: ErrorReason, message: str, *, by_peer: bool = False) -> None:
        if self.phase in OVER or self.giving_up:
            return
        self.giving_up = True
        why = Why(reason, message, by_peer)
        self.turn(Phase.TRANSFERRING, why)
        self.wire.soon(lambda: self.turn(Phase.FAILED, why))
        other = self.wire.other(self)
        if other is not None:
            other.abort(reason, message, by_peer=not by_peer)

    def clear(self) -> None:
        self.cleared = True
        if self.phase not in OVER:
            self.abort(ErrorReason.CANCELLED, "the engine dropped the room")
