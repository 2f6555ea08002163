"""What the mock needs of a rank: `tandem.engine.rank.agent.RankAgent`, or a double of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy.typing as npt

from tandem.core.errors import ErrorReason
from tandem.core.ids import PAIR, RankId, Role, RoomId, WorkerLife
from tandem.core.layout import KvLayout
from tandem.core.room.events import Phase, Why
from tandem.engine.measures import RankReport
from tandem.engine.port import OpenRooms, RankInfo, Ticket
from tandem.engine.rank.agent import RankAgent, RankSetup, RoomReport
from tandem.engine.rank.counters import RankCounters
from tandem.engine.rank.lone import LoneRank
from tandem.engine.rank.pools import Pool
from tandem.engine.rank.settings import RankSettings


class RoomPort(Protocol):
    """One room on one rank. Its pages may be freed only in SUCCESS or FAILED."""

    phase: Phase
    why: Why | None
    on_change: Callable[[], None] | None
    """Called on the loop after each change of phase."""

    def abort(self, reason: ErrorReason, message: str, *, by_peer: bool = False) -> None:
        """Gives the room up; its phase turns FAILED once nothing of it moves any more."""

    def clear(self) -> None:
        """The engine is done with the room."""


class SenderPort(RoomPort, Protocol):
    """Prefill's side."""

    decode_prefix_len: int

    def push(
        self,
        kv_pages: npt.ArrayLike,
        state_pages: Sequence[npt.ArrayLike | None] = (),
        *,
        last: bool,
        metadata_row: int | None = None,
        kv_buffers: Sequence[int] | None = None,
    ) -> None:
        """One finished chunk, in token order. kv_buffers: those of the KV pool that it is of; None = all."""

    def began(self, at_s: float) -> None:
        """The engine began to compute the prompt, at this time of the monotonic clock."""


class ReceiverPort(RoomPort, Protocol):
    """Decode's side."""

    def offer(
        self,
        kv_pages: npt.ArrayLike,
        state_pages: Sequence[npt.ArrayLike | None] = (),
        *,
        metadata_row: int,
        decode_prefix_len: int = 0,
    ) -> None:
        """The reserved pages, in token order."""


class RankPort(Protocol):
    """One rank."""

    @property
    def counters(self) -> RankCounters: ...
    async def start(self) -> RankInfo: ...
    async def close(self) -> None: ...
    async def open_ticket(self, ticket: Ticket) -> None: ...
    def identify(self, life: WorkerLife) -> None: ...
    def abort_room(self, room: RoomId, why: Why) -> bool: ...
    def rooms(self, limit: int) -> OpenRooms: ...
    def peer_joined(self, life: WorkerLife, address: str) -> None: ...
    def peer_gone(self, life: WorkerLife) -> None: ...
    def sender(self, room: RoomId) -> SenderPort: ...
    def receiver(self, room: RoomId) -> ReceiverPort: ...
    def report(self) -> RankReport: ...


MakeRank = Callable[[Role, RankId, KvLayout, tuple[Pool, ...]], RankPort]
"""Builds the rank of one memory."""


def agents(settings: RankSettings, on_room_ended: Callable[[RoomReport], None] = lambda _: None) -> MakeRank:
    """Makes real ranks with these settings. on_room_ended: called once for each room of each of them."""

    def make(role: Role, rank: RankId, layout: KvLayout, pools: tuple[Pool, ...]) -> RankPort:
        if role not in PAIR:
            return LoneRank(rank, layout)
        return RankAgent(RankSetup(role, rank, layout, pools, settings), on_room_ended=on_room_ended)

    return make
