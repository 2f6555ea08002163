"""When a cluster's workers should change: thresholds apart, conditions that last, and doubts that grow.

What is done, and when (all of it in Planner.look). Pressure is demand per worker:

- A role is *short* while its pressure is `full` or more: it can't keep up. It is *hot* while that is `high` or more.
- A role *could give* while its pressure would stay below `high` without one of its workers, and it keeps its `least`;
  it is *spare* while that would be `low` or less.
- A worker moves to a role that is short from one that could give, once both have been so without a break for `hold_s`;
  and to one that is hot from one that is spare, once that has lasted for `ease_s`. Either way it has to last for as
  long as the move takes to pay: while it moves, `move_s`, it serves nobody, and the load is taken to last as it has
  lasted.
- Where nobody could give one is added, where nobody is hot a spare one is removed: both within what is allowed.
- One change at a time: nothing else until it is made and the cluster is as wanted, or `patience_s` is over, and then
  `rest_s` more.
- A role that is to go back on its last change has to hold twice as long as the last time that it did so; one doubling
  is forgotten with every `calm_s` without a change of it.

Why that does not flap. Let W be the workers of a cluster, or the most of them, and demand not depend on how many of
them have which role.

1. *A steady load settles.* Where a role gave, demand / (workers - 1) was below `high`: it is not even hot afterwards.
   Where a role gained, its pressure had been `high` or more with one worker less: it could not even give afterwards.
   So no role ever goes back, and each changes W - 1 times at most.
2. *A load of period P goes back seldom.* Once its mean has settled demand has the period P as well, and a condition
   that holds for all of P holds for ever, its contrary never. So what makes a role go back has lasted less than P. The
   k-th time in a row it has to last `hold_s` * 2^(k-1), hence k <= 1 + log2(P / hold_s): never, if P is `hold_s` or
   less. With what is forgotten, in a time T a role goes back 1 + log2(P / hold_s) + T / calm_s times at most, however
   the load swings.
3. Between two times that it goes back a role changes in one direction, W - 1 times at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tandem.core.ids import Role
from tandem.core.planner.advice import KEEP_QUIET, Advice, Bound, Change
from tandem.core.planner.loads import RoleLoad, Snapshot

MOST_DOUBLINGS: Final = 16
"""Of how long something has to hold, and of the rest after failures."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How a planner decides."""

    full: float = 1.0
    """Short from here on; at least `high`."""
    high: float = 0.8
    """Hot from here on."""
    low: float = 0.5
    """Spare down from here, after the loss of a worker; below `high`."""
    hold_s: float = 60.0
    ease_s: float = 1800.0
    """For a move that is not urgent: all is served without it, if more slowly."""
    rest_s: float = 30.0
    """After a change."""
    move_s: float = 30.0
    """For which a worker that changes its role serves nobody."""
    patience_s: float = 300.0
    """In which a change is to be made; then it is given up."""
    calm_s: float = 3600.0
    least: int = 1
    """Workers that each role keeps."""
    most: int = 0
    """Workers of the cluster; 0: none is added or removed."""


@dataclass(slots=True)
class _Memory:
    """Of one role."""

    short_since: float | None = None
    hot_since: float | None = None
    could_give_since: float | None = None
    spare_since: float | None = None
    sign: int = 0
    """Of its last change: 1 = it gained a worker, -1 = it gave one."""
    backs: int = 0
    """How often it went back on the change before."""
    changed_at: float = 0.0

    def doublings(self, sign: int, now: float, calm_s: float) -> int:
        """Of how long a change has to wait. sign: of the change."""
        return self._backs(now, calm_s) if self.sign == -sign else 0

    def change(self, sign: int, now: float, calm_s: float) -> None:
        """One is decided."""
        self.backs = self._backs(now, calm_s) + (self.sign == -sign)
        self.sign, self.changed_at = sign, now

    def _backs(self, now: float, calm_s: float) -> int:
        return max(0, min(self.backs, MOST_DOUBLINGS) - int((now - self.changed_at) / calm_s))


@dataclass(frozen=True, slots=True)
class _Sight:
    """One role, as one look sees it."""

    role: Role
    load: RoleLoad
    short_s: float | None
    """For how long it has been short; None: it is not."""
    hot_s: float | None
    could_give_s: float | None
    spare_s: float | None

    @property
    def without_one(self) -> float:
        """Its pressure then."""
        return self.load.demand / (self.load.workers - 1)

    @property
    def with_one(self) -> float:
        """Its pressure with one more."""
        return self.load.demand / (self.load.workers + 1)


@dataclass(slots=True)
class Planner:
    """Looks at one cluster, at an even pace. What it advises it takes as being done."""

    rules: Rules = field(default_factory=Rules)
    wanted: Mapping[Role, int] = field(default_factory=dict)
    """Workers by role; empty before the first look."""
    _roles: dict[Role, _Memory] = field(default_factory=dict)
    _seen_at: float | None = None
    _off_since: float | None = None
    """Since when the cluster is not as wanted."""
    _rest_until: float = -math.inf
    _failures: int = 0

    def look(self, seen: Snapshot, *, making: bool = False) -> Advice:
        """What to do now, said once; seen: later than the one before, its demand a mean. making: the last change is
        under way, so that its patience has not begun yet."""
        self._seen_at = now = seen.at_s
        sights = [self._time(role, load, now) for role, load in seen.roles.items()]
        actual = {role: load.workers for role, load in seen.roles.items()}
        if not self.wanted:
            self.wanted = actual
        if making:
            self._off_since = now
            return _kept(Bound.CHANGE, "waits until the change is made")
        if (waits := self._until_it_is(actual, now)) is not None:
            return waits
        if now < self._rest_until:
            return _kept(Bound.REST, f"rests for {self._rest_until - now:.0f} s after a change")
        advice = self._move(sights, now) or self._add(sights, now) or self._remove(sights, now)
        if advice is None:
            return self._held_back(sights)
        for role, sign in advice.steps:
            self._roles[role].change(sign, now, self.rules.calm_s)
        self.wanted = actual | {role: actual[role] + sign for role, sign in advice.steps}
        self._off_since = now
        return advice

    def interrupted(self) -> None:
        """For a while nothing was seen: whatever has to last without a break begins anew."""
        for memory in self._roles.values():
            memory.short_since = memory.hot_since = memory.could_give_since = memory.spare_since = None

    def failed(self) -> None:
        """What was advised could not be done: it is given up, and the rest is twice as long each time."""
        if self._seen_at is not None:
            self._failures = min(self._failures + 1, MOST_DOUBLINGS)
            self._rest(self._seen_at)
        self.wanted = {}

    def _until_it_is(self, actual: Mapping[Role, int], now: float) -> Advice | None:
        """What is said while the cluster is not as wanted; None: it is, or is taken as it is."""
        if self.wanted == actual:
            if self._off_since is not None:
                self._failures = 0
                self._rest(now)
            return None
        self._off_since = now if self._off_since is None else self._off_since
        if now - self._off_since < self.rules.patience_s:
            there, wanted = _counts(actual), _counts(self.wanted)
            return _kept(Bound.CHANGE, f"waits until there are {wanted}; there are {there}")
        self.wanted = actual
        self._rest(now)
        return None

    def _rest(self, now: float) -> None:
        self._off_since = None
        self._rest_until = now + self.rules.rest_s * 2**self._failures

    def _time(self, role: Role, load: RoleLoad, now: float) -> _Sight:
        """Notes since when a role is as it is."""
        rules, memory = self.rules, self._roles.setdefault(role, _Memory())
        memory.short_since = _since(memory.short_since, load.pressure >= rules.full, now)
        memory.hot_since = _since(memory.hot_since, load.pressure >= rules.high, now)
        without_one = load.demand / (load.workers - 1) if load.workers > max(1, rules.least) else math.inf
        memory.could_give_since = _since(memory.could_give_since, without_one < rules.high, now)
        memory.spare_since = _since(memory.spare_since, without_one <= rules.low, now)
        times = (memory.short_since, memory.hot_since, memory.could_give_since, memory.spare_since)
        return _Sight(role, load, *(_passed(since, now) for since in times))

    def _move(self, sights: list[_Sight], now: float) -> Advice | None:
        gets = max((one for one in sights if one.hot_s is not None), key=_pressure, default=None)
        gives = min((one for one in sights if one.could_give_s is not None), key=_without_one, default=None)
        if gets is None or gives is None:
            return None
        # In workers: what the hot role lacks less afterwards. Above 0, as who gives stays below what makes hot.
        gain = gets.load.workers * (gets.load.pressure - max(gets.with_one, gives.without_one))
        needed_s = max(self._hold_s((gets, 1), (gives, -1), now=now), self.rules.move_s / gain)
        urgent_s = min(gets.short_s or 0.0, gives.could_give_s or 0.0)
        lasts_s = min(gets.hot_s or 0.0, gives.spare_s or 0.0)
        if urgent_s < needed_s and lasts_s < max(needed_s, self.rules.ease_s):
            return None
        reason = f"{_is_hot(gets)}, and {_is_spare(gives)}"
        return Advice(Change.MOVE, reason, gives.role, gets.role, _pressures(sights))

    def _add(self, sights: list[_Sight], now: float) -> Advice | None:
        gets = max((one for one in sights if one.hot_s is not None), key=_pressure, default=None)
        if gets is None or sum(one.load.workers for one in sights) >= self.rules.most:
            return None
        # One that is there is better than one more, if it comes soon.
        patience = 2 if any(one.could_give_s is not None for one in sights) else 1
        if (gets.hot_s or 0.0) < patience * self._hold_s((gets, 1), now=now):
            return None
        return Advice(
            Change.ADD, f"{_is_hot(gets)}, and nobody has one to spare yet", None, gets.role, _pressures(sights)
        )

    def _remove(self, sights: list[_Sight], now: float) -> Advice | None:
        gives = min((one for one in sights if one.spare_s is not None), key=_without_one, default=None)
        if gives is None or not self.rules.most or any(one.hot_s is not None for one in sights):
            return None
        if (gives.spare_s or 0.0) < self._hold_s((gives, -1), now=now):
            return None
        return Advice(Change.REMOVE, f"{_is_spare(gives)}, and nobody lacks one", gives.role, None, _pressures(sights))

    def _held_back(self, sights: list[_Sight]) -> Advice:
        """Why nothing is done."""
        rules = self.rules
        gets = max((one for one in sights if one.hot_s is not None), key=_pressure, default=None)
        if gets is None:
            spare = next((one for one in sights if one.spare_s is not None), None)
            return _kept(Bound.HOLD, _is_spare(spare)) if rules.most and spare is not None else KEEP_QUIET
        more = sum(one.load.workers for one in sights) < rules.most
        if more or any(one.could_give_s is not None for one in sights):
            return _kept(Bound.HOLD if more or gets.short_s is not None else Bound.EASE, _is_hot(gets))
        if rules.most:
            return _kept(Bound.MOST, f"{_is_hot(gets)}, and there are as many workers as there may be")
        if all(one.load.workers <= max(1, rules.least) for one in sights if one is not gets):
            return _kept(Bound.LEAST, f"{_is_hot(gets)}, and the others have as few as they may have")
        return _kept(Bound.NOBODY, f"{_is_hot(gets)}, and nobody could give one")

    def _hold_s(self, *steps: tuple[_Sight, int], now: float) -> float:
        calm_s = self.rules.calm_s
        doublings = max(self._roles[sight.role].doublings(sign, now, calm_s) for sight, sign in steps)
        return self.rules.hold_s * 2.0**doublings


def _kept(bound: Bound, reason: str) -> Advice:
    return Advice(Change.KEEP, reason, held_by=bound)


def _since(before: float | None, holds: bool, now: float) -> float | None:
    if not holds:
        return None
    return now if before is None else before


def _passed(since: float | None, now: float) -> float | None:
    return None if since is None else now - since


def _pressure(sight: _Sight) -> float:
    return sight.load.pressure


def _without_one(sight: _Sight) -> float:
    return sight.without_one


def _pressures(sights: list[_Sight]) -> Mapping[Role, float]:
    return {one.role: one.load.pressure for one in sights}


def _counts(workers: Mapping[Role, int]) -> str:
    return ", ".join(f"{count} {role.value}" for role, count in workers.items()) or "none"


def _is_hot(sight: _Sight) -> str:
    load = sight.load
    return (
        f"{sight.role.value} is at {load.pressure:.2f} of what its {load.workers} do well, for {sight.hot_s or 0:.0f} s"
        f" ({load.running} run, {load.waiting} wait)"
    )


def _is_spare(sight: _Sight) -> str:
    return (
        f"{sight.role.value} would be at {sight.without_one:.2f} with {sight.load.workers - 1} instead of"
        f" {sight.load.workers}, for {sight.could_give_s or 0:.0f} s"
    )
