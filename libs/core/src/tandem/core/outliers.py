"""Workers that fail more often than the others of their role, though not every time, and where nobody is to blame.

A room that fails by its link tells nothing of which end it was. But rooms are spread: each peer of a worker with a bad
card has only some of its rooms with it, and that worker has all of them, so it alone stands out among its own kind.

Pure: time is handed in, in monotonic seconds. Counts fade by half in `half_life_s`, which keeps them sums: those of all
workers less one's own are those of the others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from tandem.core.errors import ErrorReason
from tandem.core.ids import WorkerLife

EITHERS: Final = frozenset(
    {
        ErrorReason.LINK_LOST,
        ErrorReason.PEER_LOST,
        ErrorReason.TRANSFER_FAILED,
        ErrorReason.CHECKSUM_MISMATCH,
        ErrorReason.GRANT_CLOSED,
    }
)
"""What may lie in either end, or between the two; it counts here for both."""

MOST_OUT: Final = 0.5
"""Of the workers of a role: more are never left out at the same time."""


@dataclass(frozen=True, slots=True)
class OutlierSettings:
    """When a worker stands out."""

    excess: float = 0.2
    """By how much the failed share of its rooms, 0..1, exceeds that of the others; 0 = nobody is looked at."""
    min_rooms: int = 20
    """Of a worker, and of the others together, before anybody is judged."""
    half_life_s: float = 30.0
    """In which what was counted fades to half."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Rooms that ended, well or by a failure that may be the worker's."""

    at: float
    """To which time the counts have faded."""
    rooms: float = 0.0
    failed: float = 0.0

    def plus(self, rooms: float, failed: float, now: float, half_life_s: float) -> Tally:
        """With more of them; they may be negative, to take a worker out of a sum."""
        kept = 0.5 ** (max(0.0, now - self.at) / half_life_s)
        return Tally(max(now, self.at), max(0.0, self.rooms * kept + rooms), max(0.0, self.failed * kept + failed))


class Outliers:
    """Counts for the workers of one role."""

    def __init__(self, settings: OutlierSettings, max_lives: int) -> None:
        """max_lives: so many are remembered; the one whose rooms ended the longest ago is forgotten."""
        self._settings = settings
        self._max_lives = max_lives
        self._tallies: OrderedDict[WorkerLife, Tally] = OrderedDict()
        self._all = Tally(0.0)

    @property
    def lives(self) -> Collection[WorkerLife]:
        """Those that have been counted."""
        return self._tallies.keys()

    def add(self, life: WorkerLife, now: float, *, failed: bool) -> None:
        """A room has ended."""
        half_life_s = self._settings.half_life_s
        before = self._tallies.get(life) or Tally(now)
        self._tallies[life] = before.plus(1, failed, now, half_life_s)
        self._tallies.move_to_end(life)
        self._all = self._all.plus(1, failed, now, half_life_s)
        if len(self._tallies) > self._max_lives:
            self._take_out(next(iter(self._tallies)))

    def forget(self, life: WorkerLife) -> None:
        """It is judged anew, by what comes."""
        if life in self._tallies:
            self._take_out(life)
            self._tallies[life] = Tally(self._all.at)

    def stands_out(self, life: WorkerLife, now: float) -> bool:
        """Whether it fails more often than the others."""
        settings = self._settings
        own = (self._tallies.get(life) or Tally(now)).plus(0, 0, now, settings.half_life_s)
        others = self._all.plus(-own.rooms, -own.failed, now, settings.half_life_s)
        if not settings.excess or min(own.rooms, others.rooms) < settings.min_rooms:
            return False
        return own.failed / own.rooms - others.failed / others.rooms >= settings.excess

    def _take_out(self, life: WorkerLife) -> None:
        own = self._tallies.pop(life)
        at, half_life_s = max(own.at, self._all.at), self._settings.half_life_s
        own = own.plus(0, 0, at, half_life_s)
        self._all = self._all.plus(-own.rooms, -own.failed, at, half_life_s)
