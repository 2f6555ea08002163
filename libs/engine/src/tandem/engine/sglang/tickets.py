"""Who opens the rooms of an engine: its ranks, over their hub, or nobody where no rank has to know."""

from __future__ import annotations

from typing import Protocol

from tandem.core.ids import RoomId
from tandem.core.room.events import Why
from tandem.engine.port import Job


class Tickets(Protocol):
    """Part of tandem.engine.hub.RankHub."""

    async def open_tickets(self, job: Job) -> None:
        """Opens the job's room on every rank. Raises TandemError."""

    def abort(self, room: RoomId, why: Why) -> None:
        """Ends a room on every rank."""

    def failure_of(self, room: RoomId) -> Why | None:
        """Why a room failed on a rank; None if it did on none."""


class NoTickets:
    """Of an engine that works alone."""

    async def open_tickets(self, job: Job) -> None:
        """Nothing to be done."""

    def abort(self, room: RoomId, why: Why) -> None:
        """Nothing to be done."""

    def failure_of(self, room: RoomId) -> Why | None:
        """None: no rank knows it."""
