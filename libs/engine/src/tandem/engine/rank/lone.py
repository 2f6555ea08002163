"""A rank of an engine that works alone: it tells what it is and what it uses, and moves nothing."""

from __future__ import annotations

from collections import Counter
from typing import NoReturn

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RankId, RoomId, WorkerLife
from tandem.core.layout import KvLayout
from tandem.core.room.events import Why
from tandem.engine.measures import RankReport
from tandem.engine.port import OpenRooms, RankInfo, Ticket
from tandem.engine.rank.counters import RankCounters
from tandem.engine.rank.process_use import process_use
from tandem.rpc.loop_lag import measure_lag
from tandem.rpc.tasks import TaskSupervisor


class LoneRank:
    """Takes the place of a RankAgent where there is no peer: no memory is registered, nothing listens or dials."""

    def __init__(self, rank: RankId, layout: KvLayout) -> None:
        self.rank = rank
        self.layout = layout
        self.counters = RankCounters()
        self._tasks = TaskSupervisor(max_tasks=1)

    async def start(self) -> RankInfo:
        """Returns what to register."""
        self._tasks.spawn(measure_lag(self.counters.measures.lag_s.observe), "event loop lag")
        return RankInfo(self.rank, "")

    async def close(self) -> None:
        """Idempotent."""
        await self._tasks.close()

    async def open_ticket(self, ticket: Ticket) -> NoReturn:
        """Raises TandemError(NOT_SUPPORTED): there are no rooms here."""
        raise self._no_rooms()

    def sender(self, room: RoomId) -> NoReturn:
        """Raises TandemError(NOT_SUPPORTED)."""
        raise self._no_rooms()

    def receiver(self, room: RoomId) -> NoReturn:
        """Raises TandemError(NOT_SUPPORTED)."""
        raise self._no_rooms()

    def _no_rooms(self) -> TandemError:
        return TandemError(ErrorReason.NOT_SUPPORTED, f"rank {self.rank} works alone, so it has no rooms to move")

    def identify(self, life: WorkerLife) -> None:
        """Of no use: nobody is linked to."""

    def abort_room(self, room: RoomId, why: Why) -> bool:
        """False: it is not open."""
        return False

    def rooms(self, limit: int) -> OpenRooms:
        """None."""
        return OpenRooms()

    def peer_joined(self, life: WorkerLife, address: str) -> None:
        """Of no use."""

    def peer_gone(self, life: WorkerLife) -> None:
        """Of no use."""

    def report(self) -> RankReport:
        """What its process uses, and how late its loop is."""
        return RankReport(
            rank=self.rank,
            rooms=Counter(),
            rooms_overdue=0,
            oldest_room_s=0.0,
            queue_pairs_replaced=0,
            process=process_use(),
            measures=self.counters.measures,
        )
