"""How far this gateway trusts each worker: a circuit breaker and a tally per life, fed by how rooms end on it."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from tandem.core.breaker import SICK, Breaker, BreakerSettings, Event, State
from tandem.core.errors import TandemError
from tandem.core.ids import Role, WorkerLife
from tandem.core.outliers import EITHERS, MOST_OUT, Outliers, OutlierSettings
from tandem.gateway.routing.attempt import Legs

log = logging.getLogger(__name__)

MAX_LIVES: Final = 4096
"""Lives that are remembered; the one that was looked at the longest ago is forgotten, and joins anew if it is seen."""


class WatchedRoom(Protocol):
    """What an attempt tells of its room; see tandem.gateway.routing.room_end.RoomEnd."""

    blamed: Role | None

    @property
    def complete(self) -> bool:
        """Whether it ended well."""

    @property
    def failure(self) -> TandemError | None:
        """Why it failed, once it has."""

    def on_kv_arrived(self, hook: Callable[[], None]) -> None:
        """Adds what is called once prefill has done its part."""


TOLD_S: Final = 0.05
"""How long what `exceptional` says of a slow start holds."""


@dataclass(frozen=True, slots=True)
class Exceptional:
    """A worker that is not simply given rooms."""

    life: WorkerLife
    takes: bool
    """Whether it should get one."""
    share: float
    """Of its places that it should be given."""


class HealthBook:
    """Holds the breakers and tallies."""

    def __init__(
        self,
        settings: BreakerSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_opened: Callable[[Role], None] = lambda _: None,
        outliers: OutlierSettings | None = None,
        there: Callable[[Role], Collection[WorkerLife]] | None = None,
    ) -> None:
        """clock: monotonic seconds. on_opened: hears of each breaker that opens, by its worker's role. there: the
        workers of a role that are in the cluster now; all that have had rooms, if it is not given."""
        self._settings = settings or BreakerSettings()
        self._clock = clock
        self._on_opened = on_opened
        self._breakers: OrderedDict[WorkerLife, Breaker] = OrderedDict()
        self._watched: set[WorkerLife] = set()
        """Those that may be exceptional; all others have closed breakers and their full share."""
        self._told: tuple[Exceptional, ...] = ()
        """What `exceptional` says, until something happens or until then."""
        self._told_until = float("inf")
        self._outliers = {role: Outliers(outliers or OutlierSettings(), MAX_LIVES) for role in Role}
        self._there = there or (lambda role: self._outliers[role].lives)

    def state_of(self, life: WorkerLife) -> State:
        """How a worker stands; CLOSED if it was never looked at."""
        breaker = self._breakers.get(life)
        return State.CLOSED if breaker is None else breaker.state

    def meet(self, lives: Iterable[WorkerLife]) -> None:
        """These are there; those that are new have joined now."""
        for life in lives:
            self._of(life)

    def exceptional(self) -> Sequence[Exceptional]:
        """Every worker that is not trusted, or starts slowly. Costs nothing for the others. The very same object as
        the last time, if it has to say the same."""
        if not self._watched and not self._told:
            return self._told
        now = self._clock()
        if now < self._told_until:
            return self._told
        found, until = [], float("inf")
        for life in tuple(self._watched):
            breaker = self._breakers[life]
            one = Exceptional(life, breaker.takes(now), breaker.share(now, self._settings))
            if breaker.state is State.CLOSED and one.share >= 1:
                self._watched.discard(life)
                continue
            found.append(one)
            if breaker.state is State.CLOSED:
                until = min(until, now + TOLD_S)
            elif not one.takes and breaker.state is State.OPEN:
                until = min(until, breaker.due)
        self._told, self._told_until = tuple(found), until
        return self._told

    @contextmanager
    def watching(self, room: WatchedRoom, legs: Legs) -> Iterator[None]:
        """A room runs on these workers inside of this, and how it ends counts for each."""
        sent = {role: self._sent(life) for role, life in legs.items()}
        arrived = False

        def note_kv() -> None:
            nonlocal arrived
            arrived = True
            if (prefill := legs.get(Role.PREFILL)) is not None:
                self._ended(Role.PREFILL, prefill, sent[Role.PREFILL], Event.WELL)

        room.on_kv_arrived(note_kv)
        try:
            yield
        finally:
            for role, life in legs.items():
                self._ended(role, life, sent[role], _told_of(role, room, arrived))

    def _of(self, life: WorkerLife) -> Breaker:
        breaker = self._breakers.get(life)
        if breaker is not None:
            self._breakers.move_to_end(life)
            return breaker
        joined = self._breakers[life] = Breaker(self._clock())
        self._watch(life)
        if len(self._breakers) > MAX_LIVES:
            forgotten, _ = self._breakers.popitem(last=False)
            self._watched.discard(forgotten)
        return joined

    def _watch(self, life: WorkerLife) -> None:
        self._watched.add(life)
        self._told_until = float("-inf")

    def _sent(self, life: WorkerLife) -> int:
        """Notes a room; returns its epoch."""
        breaker = self._of(life)
        self._breakers[life] = after = breaker.step(Event.SENT, breaker.epoch, self._clock(), self._settings)
        if after.state is not breaker.state:
            self._watch(life)
        return after.epoch

    def _ended(self, role: Role, life: WorkerLife, epoch: int, event: Event) -> None:
        before, now = self._of(life), self._clock()
        after = before.step(event, epoch, now, self._settings)
        if after.state is before.state and epoch == before.epoch and self._is_outlier(role, life, event):
            event = Event.EJECTED
            after = after.step(event, epoch, now, self._settings)
        self._breakers[life] = after
        if after.state is before.state:
            return
        self._watch(life)
        if after.state is State.CLOSED:
            log.info("%s works again, and gets more by and by", life)
        elif event in (Event.FAILED, Event.EJECTED) or after.due > now:
            why = f"failed {after.failures} rooms in a row" if event is Event.FAILED else "fails more than others do"
            log.warning("%s %s: it gets none for %g s", life, why, after.due - now)
            self._on_opened(role)

    def _is_outlier(self, role: Role, life: WorkerLife, event: Event) -> bool:
        """Counts a room that ended; returns whether its worker is to be left out."""
        outliers, now = self._outliers[role], self._clock()
        if event is Event.WELL:
            outliers.add(life, now, failed=False)
            return False
        if event not in (Event.FAILED, Event.EITHERS):
            return False
        outliers.add(life, now, failed=True)
        there = self._there(role)
        out = sum(self.state_of(one) is not State.CLOSED for one in there)
        if out + 1 > MOST_OUT * len(there) or not outliers.stands_out(life, now):
            return False
        outliers.forget(life)
        return True


def _told_of(role: Role, room: WatchedRoom, arrived: bool) -> Event:
    """What the end of a room tells of the worker of one leg; prefill has had its praise before.

    arrived: whether the KV was, so that what failed later was not on the way between the two.
    """
    if room.complete and role is not Role.PREFILL:
        return Event.WELL
    if room.failure is None:
        return Event.NEITHER
    reason = room.failure.reason
    if room.blamed is role and reason in SICK:
        return Event.FAILED
    return Event.EITHERS if room.blamed is None and not arrived and reason in EITHERS else Event.NEITHER
