"""How many workers of each role clients ask for, whether or not their requests have got a turn. Pure.

A request takes so many seconds of one worker of each role. So what comes in a second takes as many workers as it takes
seconds; and what waits adds what it takes to be gone in `clear_s`. What one request takes says a model of costs. Where
there is none it is what workers do now for each request that begins: those that are busy, by what begins in a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from tandem.core.ids import Role
from tandem.core.planner.loads import Comfort, RoleLoad, Snapshot, WorkerSight, snapshot

MOST_EXCESS: Final = 4.0
"""Without a model of costs, demand is this much above what is busy at most: where next to nothing begins, what one
request takes can't be told."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What gateways have counted since their start, all of them together."""

    asked: int = 0
    """Requests, those too that wait for their turn or were refused."""
    prompt_tokens: int = 0
    """Of those."""
    begun: int = 0
    """Requests that have their first token."""
    answer_tokens: int = 0
    """So far, of all of them."""
    waiting: int = 0
    """Requests that wait now, before any worker has them."""


@dataclass(frozen=True, slots=True)
class MeanRequest:
    """The one that the load seen is taken to be made of."""

    prompt_tokens: float
    new_tokens: float
    """At least 1."""


Costs = Callable[[MeanRequest], Mapping[Role, float]]
"""Seconds that a request takes of one worker of each role that is as full as it may be."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """Over which times it looks."""

    smooth_s: float = 15.0
    """Of all means: what is as old counts 1/e."""
    clear_s: float = 120.0
    """In which what waits should be gone."""


@dataclass(slots=True)
class _Sums:
    """What has been seen, the older the less; by `span_s` it is a mean per second."""

    span_s: float = 0.0
    asked: float = 0.0
    prompt_tokens: float = 0.0
    begun: float = 0.0
    answer_tokens: float = 0.0
    busy: dict[Role, float] = field(default_factory=dict)
    rooms: dict[Role, float] = field(default_factory=dict)

    def forget(self, kept: float) -> None:
        """kept: share of all that was seen."""
        self.span_s *= kept
        self.asked *= kept
        self.prompt_tokens *= kept
        self.begun *= kept
        self.answer_tokens *= kept
        self.busy = {role: busy * kept for role, busy in self.busy.items()}
        self.rooms = {role: rooms * kept for role, rooms in self.rooms.items()}

    def count(self, before: Traffic, now: Traffic) -> None:
        """What was counted meanwhile; nothing where a gateway began anew."""
        if now.asked < before.asked or now.answer_tokens < before.answer_tokens:
            return
        self.asked += now.asked - before.asked
        self.prompt_tokens += now.prompt_tokens - before.prompt_tokens
        self.begun += now.begun - before.begun
        self.answer_tokens += now.answer_tokens - before.answer_tokens

    def saw(self, role: Role, load: RoleLoad, for_s: float) -> None:
        """A role was like this for so long."""
        self.busy[role] = self.busy.get(role, 0.0) + load.demand * for_s
        self.rooms[role] = self.rooms.get(role, 0.0) + (load.running + load.waiting) * for_s


class Demands:
    """Of one cluster."""

    def __init__(self, outlook: Outlook, comfort: Comfort, costs: Costs | None = None) -> None:
        """costs: None = what a request takes is measured."""
        self._outlook, self._comfort, self._costs = outlook, comfort, costs
        self._sums = _Sums()
        self._before: tuple[float, Traffic] | None = None

    def look(self, at_s: float, sights: Iterable[WorkerSight], traffic: Traffic) -> Snapshot:
        """The cluster now; demand is a mean. at_s: monotonic seconds, later than the time before."""
        now = snapshot(at_s, sights, self._comfort)
        if self._before is not None:
            passed_s = at_s - self._before[0]
            self._sums.forget(math.exp(-passed_s / self._outlook.smooth_s))
            self._sums.span_s += passed_s
            self._sums.count(self._before[1], traffic)
            for role, load in now.roles.items():
                self._sums.saw(role, load, passed_s)
        self._before = at_s, traffic
        reckoned = self._reckoned()
        return Snapshot(at_s, {role: self._mean(role, now.roles, traffic.waiting, reckoned) for role in now.roles})

    def _mean(
        self, role: Role, roles: Mapping[Role, RoleLoad], waiting: int, reckoned: Mapping[Role, float] | None
    ) -> RoleLoad:
        load, sums = roles[role], self._sums
        if not sums.span_s:
            return load
        busy, share = sums.busy[role] / sums.span_s, self._share(role, roles)
        seconds = self._measured(share, busy) if reckoned is None else reckoned.get(role, 0.0)
        come = (
            share * (sums.asked / sums.span_s + waiting / self._outlook.clear_s) + load.backlog / self._outlook.clear_s
        )
        wanted = come * seconds
        if reckoned is None:
            wanted = min(wanted, MOST_EXCESS * busy)
        return replace(load, demand=max(busy, wanted))

    def _measured(self, share: float, busy: float) -> float:
        """Seconds that a request takes of one worker, by what such workers do; 0 = not known."""
        begun_per_s = share * self._sums.begun / self._sums.span_s
        return busy / begun_per_s if begun_per_s else 0.0

    def _reckoned(self) -> Mapping[Role, float] | None:
        """The same of each role by the costs of the mean request, nothing while none is known; None = without costs."""
        sums = self._sums
        if self._costs is None:
            return None
        if not sums.asked:
            return {}
        new_tokens = max(1.0, sums.answer_tokens / sums.begun) if sums.begun else 1.0
        return self._costs(MeanRequest(sums.prompt_tokens / sums.asked, new_tokens))

    def _share(self, role: Role, roles: Mapping[Role, RoleLoad]) -> float:
        """Of the requests, those that go by a role: all, unless there are unified workers beside pairs."""
        ends = (Role.DECODE, Role.UNIFIED)
        rooms = {end: self._sums.rooms[end] for end in ends if end in roles}
        total = sum(rooms.values())
        if len(rooms) < len(ends) or not total:
            return 1.0
        return rooms[Role.UNIFIED if role is Role.UNIFIED else Role.DECODE] / total
