"""The rooms of this gateway that have not ended: for an operator, who may look at them and end one."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RequestId, Role, RoomId
from tandem.gateway.routing.attempt import Legs, RoomPhase

MAX_PAGE: Final = 1_000


class GivenUp(Protocol):
    """See tandem.gateway.routing.room_end.RoomEnd."""

    def give_up(self, error: TandemError) -> bool:
        """Ends every leg. False if it had ended."""


class RunningRoom(Protocol):
    """The part of an attempt that is looked at; see tandem.gateway.routing.attempt.Attempt."""

    @property
    def phase(self) -> RoomPhase:
        """How far it is."""

    @property
    def end(self) -> GivenUp:
        """How it ends."""


@dataclass(frozen=True, slots=True)
class RoomFacts:
    """What does not change about a room."""

    room: RoomId
    request_id: RequestId
    attempt: int
    """Number of the attempt at its sequence, from 1."""
    legs: Legs
    deadline: float
    """Monotonic seconds, of the event loop's clock."""

    def worker_of(self, role: Role) -> str:
        """Name of the worker that does the part of PREFILL or DECODE."""
        return (self.legs.get(role) or self.legs[Role.UNIFIED]).worker_id


@dataclass(frozen=True, slots=True)
class Entry:
    """One room in the book."""

    number: int
    """Rises with every room of this gateway, from 1."""
    facts: RoomFacts
    running: RunningRoom
    started: float
    """Monotonic seconds, of the event loop's clock."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some rooms, in order of their start."""

    entries: tuple[Entry, ...]
    next_after: int
    """Number after which the next page begins; 0 = there is none."""
    total: int
    """Rooms in the book."""


class RoomBook:
    """Holds a room for as long as its attempt runs. Its size is bounded by the gateway's places for sequences."""

    def __init__(self) -> None:
        self._entries: dict[RoomId, Entry] = {}
        self._numbers = itertools.count(1)

    @contextmanager
    def running(self, facts: RoomFacts, room: RunningRoom) -> Iterator[None]:
        """The room is in the book inside of this."""
        now = asyncio.get_running_loop().time()
        self._entries[facts.room] = Entry(next(self._numbers), facts, room, now)
        try:
            yield
        finally:
            del self._entries[facts.room]

    def page(self, after: int, size: int) -> Page:
        """The oldest rooms after a number. size: 1..1000, 0 = 1000. Raises INVALID_ARGUMENT."""
        if not 0 <= size <= MAX_PAGE:
            text = f"page_size is {size}, allowed: 1..{MAX_PAGE}, or 0 for the most"
            raise TandemError(ErrorReason.INVALID_ARGUMENT, text, field="page_size")
        found = [entry for entry in self._entries.values() if entry.number > after]
        shown = tuple(found[: size or MAX_PAGE])
        return Page(shown, shown[-1].number if len(shown) < len(found) else 0, len(self._entries))

    def entries(self) -> tuple[Entry, ...]:
        """Every room, the oldest first."""
        return tuple(self._entries.values())

    def phases(self) -> Counter[RoomPhase]:
        """Rooms by phase."""
        return Counter(entry.running.phase for entry in self._entries.values())

    def find(self, room: RoomId) -> Entry:
        """Raises UNKNOWN_ROOM."""
        entry = self._entries.get(room)
        if entry is None:
            raise TandemError(ErrorReason.UNKNOWN_ROOM, f"no room {room} of this gateway is in flight")
        return entry

    def abort(self, room: RoomId) -> Entry:
        """Ends a room on every leg with CANCELLED; its client gets that. Raises UNKNOWN_ROOM."""
        entry = self.find(room)
        if not entry.running.end.give_up(TandemError(ErrorReason.CANCELLED, "An operator gave the request up.")):
            raise TandemError(ErrorReason.UNKNOWN_ROOM, f"room {room} has just ended")
        return entry
