"""A circuit breaker for each worker: who fails too often in a row gets nothing for a while, then one room as a probe.

Pure: a Breaker is a value, time is handed in, in monotonic seconds. A room remembers the epoch in which it was sent;
how it ends counts only in that epoch, so that rooms from before a breaker opened neither close it nor keep it open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Final

from tandem.core.errors import ErrorReason

SICK: Final = frozenset({ErrorReason.ENGINE_FAILED, ErrorReason.INTERNAL})
"""What counts against the worker that is to blame for it. That it has no pages left or drains does not, and who is out
of reach has no Session, and so gets nothing anyway."""

MOST_TIMES: Final = 10
"""As long as after a row of failures is a worker left out that stands out again and again."""

LEAST_SHARE: Final = 0.1
"""Of its places, where a slow start begins."""


class State(Enum):
    """How a worker is trusted."""

    CLOSED = "closed"
    """It gets rooms."""
    OPEN = "open"
    """It gets none until its time is over."""
    HALF_OPEN = "half_open"
    """One room is there as a probe."""


class Event(Enum):
    """What happens with a room on a worker."""

    SENT = "sent"
    WELL = "well"
    """Its leg did what it had to: all of it, as a worker that breaks off every answer begins each of them well."""
    FAILED = "failed"
    """By the worker's own fault."""
    EJECTED = "ejected"
    """It fails more often than others of its role; see tandem.core.outliers."""
    EITHERS = "eithers"
    """Its room failed on the way between it and its peer: it may have been either of them."""
    NEITHER = "neither"
    """It ended without telling anything of the worker: it was given up, or failed elsewhere."""


MOVES: Final[Mapping[tuple[State, Event], State]] = MappingProxyType(
    {
        (State.CLOSED, Event.FAILED): State.OPEN,
        (State.CLOSED, Event.EJECTED): State.OPEN,
        (State.OPEN, Event.SENT): State.HALF_OPEN,
        (State.HALF_OPEN, Event.WELL): State.CLOSED,
        (State.HALF_OPEN, Event.FAILED): State.OPEN,
        (State.HALF_OPEN, Event.EITHERS): State.OPEN,
        (State.HALF_OPEN, Event.NEITHER): State.OPEN,
    }
)
"""Every move; that by FAILED from CLOSED only after enough of them in a row. Whatever is not listed changes nothing."""


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a breaker opens, and how a worker comes back."""

    failures: int = 5
    """So many in a row open it; 0 = it never opens."""
    open_s: float = 5.0
    """From there to the probe."""
    slow_start_s: float = 10.0
    """Until a worker that has joined or recovered has its full share; 0 = at once."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """One worker's."""

    since: float
    """When it came into its state, or the worker joined."""
    state: State = State.CLOSED
    failures: int = 0
    """In a row."""
    epoch: int = 0
    """How often the state has changed."""
    due: float = 0.0
    """While it is OPEN: when the probe may follow."""
    ejections: int = 0
    """How often it stood out. It is left out so many times as long."""

    def step(self, event: Event, epoch: int, now: float, settings: BreakerSettings) -> Breaker:
        """The breaker after an event. epoch: in which the room was sent; the present one for SENT."""
        if epoch != self.epoch:
            return self
        failures = 0 if event is Event.WELL else self.failures + (event is Event.FAILED)
        to = MOVES.get((self.state, event), self.state)
        enough = event is Event.EJECTED or 0 < settings.failures <= failures
        if to is self.state or (self.state is State.CLOSED and not enough):
            return self if failures == self.failures else replace(self, failures=failures)
        # A probe that told nothing has cost no time: the next may follow at once. What may be either's tells something
        # of a worker that stood out by that, and nothing of one that never did.
        ejections = self.ejections + (event is Event.EJECTED)
        times = 0 if event is Event.NEITHER else 1 if event is Event.FAILED else min(ejections, MOST_TIMES)
        return Breaker(now, to, failures, self.epoch + 1, now + times * settings.open_s, ejections)

    def takes(self, now: float) -> bool:
        """Whether the worker should get a room."""
        return self.state is State.CLOSED or (self.state is State.OPEN and now >= self.due)

    def share(self, now: float, settings: BreakerSettings) -> float:
        """The part of its places that the worker should be given now: LEAST_SHARE..1, growing evenly."""
        if self.state is not State.CLOSED:
            return LEAST_SHARE
        grown = 1.0 if settings.slow_start_s <= 0 else (now - self.since) / settings.slow_start_s
        return min(1.0, max(LEAST_SHARE, grown))
