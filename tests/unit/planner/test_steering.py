"""What a planner advises for loads that stay, swing and shift; the bounds are those that its module proves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.core.ids import PAIR, Role
from tandem.core.planner.advice import Advice, Bound, Change
from tandem.core.planner.loads import RoleLoad, Snapshot
from tandem.core.planner.steering import Planner, Rules

Demand = Callable[[float], Mapping[Role, float]]
RULES = Rules(hold_s=30, rest_s=60)
SCALES = replace(RULES, most=12)
P, D, U = Role.PREFILL, Role.DECODE, Role.UNIFIED


@dataclass
class Plant:
    """A cluster that does what it is told, after a while."""

    planner: Planner
    workers: dict[Role, int]
    delay_s: float = 20.0
    followed: list[tuple[float, Advice]] = field(default_factory=list)
    lowest: dict[Role, int] = field(default_factory=dict)
    now: float = 0.0
    pace_s: float = 1.0

    def run(self, demand: Demand, for_s: float) -> list[Advice]:
        """Looks at its pace; what was advised in that time."""
        before, end = len(self.followed), self.now + for_s
        while self.now < end:
            for at_s, advice in self.followed[-1:]:
                if at_s + self.delay_s <= self.now < at_s + self.delay_s + self.pace_s:
                    for role, sign in advice.steps:
                        self.workers[role] += sign
            self.lowest = {role: min(count, self.lowest.get(role, count)) for role, count in self.workers.items()}
            advice = self.planner.look(seen(self.now, self.workers, demand(self.now)))
            if advice.change is not Change.KEEP:
                self.followed.append((self.now, advice))
            self.now += self.pace_s
        return [advice for _, advice in self.followed[before:]]


def seen(at_s: float, workers: Mapping[Role, int], demand: Mapping[Role, float]) -> Snapshot:
    """What a planner sees."""
    return Snapshot(at_s, {role: RoleLoad(count, demand[role]) for role, count in workers.items()})


def steady(**demand: float) -> Demand:
    """The same for ever."""
    return lambda _: {role: demand.get(role.value, 0.0) for role in Role}


def wave(period_s: float, first: Mapping[Role, float], second: Mapping[Role, float]) -> Demand:
    """Half of the time one, half of the time the other."""
    return lambda at_s: first if at_s % period_s < period_s / 2 else second


def reversals(advices: list[Advice]) -> int:
    """How often roles went back on their last change, the most of any."""
    most = 0
    for role in Role:
        signs = [sign for advice in advices for one, sign in advice.steps if one is role]
        most = max(most, sum(a != b for a, b in itertools.pairwise(signs)))
    return most


def plant(rules: Rules = RULES, **workers: int) -> Plant:
    """A cluster with a planner of its own."""
    return Plant(Planner(rules), {role: workers[role.value] for role in Role if role.value in workers})


def test_a_worker_moves_to_where_it_lacks_and_that_is_said_once() -> None:
    cluster = plant(prefill=2, decode=3)
    (advice,) = cluster.run(steady(prefill=3, decode=1.0), 400)
    assert (advice.change, advice.gives, advice.gets) == (Change.MOVE, D, P)
    assert advice.reason.startswith("prefill is at 1.50 of what its 2 do well, for ")
    assert advice.pressures == pytest.approx({P: 1.5, D: 1.0 / 3})
    assert cluster.planner.wanted == {P: 3, D: 2} == cluster.workers


@pytest.mark.parametrize("excess", [0.0, 0.1, 0.5, 2.0])
def test_a_shift_moves_in_bounded_time(excess: float) -> None:
    """A hold or as long as the move takes to pay, and a look."""
    cluster = plant(prefill=2, decode=4)
    assert not cluster.run(steady(prefill=1.0, decode=2.4), 1000)
    after = 2 * (1.0 + excess)
    cluster.run(steady(prefill=after, decode=0.6), 1000)
    gain = after - 2 * max(after / 3, 0.6 / 3)
    assert cluster.followed[0][0] - 1000 <= max(30, 30 / gain) + 2


def test_a_small_gain_is_waited_for_longer() -> None:
    def first(prefill: float) -> float:
        cluster = plant(prefill=4, decode=4)
        cluster.run(steady(prefill=prefill, decode=1.0), 1000)
        return cluster.followed[0][0]

    assert first(prefill=8) == 30
    assert first(prefill=4.4) == pytest.approx(30 / (4.4 - 4 * 4.4 / 5), abs=1)


def test_a_role_that_keeps_up_gets_one_only_if_that_has_lasted_and_somebody_has_one_to_spare() -> None:
    rules = replace(RULES, ease_s=600)
    lasting = plant(rules, prefill=4, decode=4)
    (advice,) = lasting.run(steady(prefill=3.4, decode=1.5), 2000)
    assert (lasting.followed[0][0], advice.gets) == (600, P)
    assert not plant(rules, prefill=4, decode=4).run(steady(prefill=3.4, decode=1.6), 2000), "it would be at 0.53"
    turning = plant(rules, prefill=4, decode=4)
    assert not turning.run(wave(1000, {P: 3.4, D: 1.0}, {P: 1.0, D: 3.4}), 5000)


def test_a_role_that_still_lacks_one_gets_the_next_after_the_rest() -> None:
    """What has been seen of it so far goes on to count."""
    cluster = plant(prefill=1, decode=5)
    cluster.run(steady(prefill=2.5, decode=0.5), 1000)
    times = [at_s for at_s, _ in cluster.followed]
    assert len(times) == 2
    assert times[1] - times[0] == cluster.delay_s + RULES.rest_s


def test_nobody_gives_who_would_lack_it() -> None:
    assert not plant(prefill=2, decode=3).run(steady(prefill=3, decode=1.7), 5000)


def test_a_role_keeps_its_least() -> None:
    cluster = plant(prefill=1, decode=3)
    cluster.run(steady(prefill=9, decode=0), 5000)
    assert cluster.workers == {P: 3, D: 1}
    cluster = plant(replace(RULES, least=2), prefill=1, decode=3)
    cluster.run(steady(prefill=9, decode=0), 5000)
    assert cluster.workers == {P: 2, D: 2}


def test_unified_workers_give_and_get_as_others() -> None:
    cluster = plant(prefill=1, decode=1, unified=3)
    cluster.run(steady(prefill=2, decode=0.4, unified=0.5), 2000)
    assert cluster.workers == {P: 3, D: 1, U: 1}


def test_one_is_added_where_nobody_can_give_and_removed_where_nobody_lacks() -> None:
    cluster = plant(SCALES, prefill=2, decode=2)
    cluster.run(steady(prefill=3, decode=1.4), 3000)
    assert cluster.workers == {P: 4, D: 2}
    cluster.run(steady(prefill=0.3, decode=1.4), 3000)
    assert cluster.workers == {P: 1, D: 2}


def test_no_more_are_added_than_allowed() -> None:
    cluster = plant(replace(SCALES, most=5), prefill=2, decode=2)
    cluster.run(steady(prefill=90, decode=90), 3000)
    assert sum(cluster.workers.values()) == 5


def test_who_can_give_soon_comes_before_one_more() -> None:
    cluster = plant(SCALES, prefill=2, decode=4)
    advices = cluster.run(lambda at_s: {P: 3.6, D: 3.0 if at_s < 5 else 0.5}, 300)
    assert advices[0].change is Change.MOVE


def test_what_nobody_does_is_given_up_and_said_again_later() -> None:
    cluster = plant(prefill=1, decode=3)
    cluster.delay_s = math.inf
    cluster.run(steady(prefill=9, decode=0), 1000)
    times = [at_s for at_s, _ in cluster.followed]
    assert [b - a for a, b in itertools.pairwise(times)] == [300 + 60] * (len(times) - 1)
    assert cluster.planner.wanted == {P: 2, D: 2}


def test_patience_begins_when_a_change_has_been_made_and_nothing_else_begins_before() -> None:
    planner, told = Planner(RULES), dict[float, Advice]()
    for now in range(1500):
        told[now] = planner.look(seen(now, {P: 1, D: 3}, {P: 9, D: 0}), making=30 < now <= 1000)
    changes = [at_s for at_s, advice in told.items() if advice.change is not Change.KEEP]
    assert changes == [30, 1000 + 300 + 60]


def test_what_fails_is_tried_again_ever_later() -> None:
    planner, times = Planner(RULES), list[float]()
    for now in range(1000):
        if planner.look(seen(now, {P: 1, D: 3}, {P: 9, D: 0})).change is Change.MOVE:
            times.append(now)
            planner.failed()
    assert [b - a for a, b in itertools.pairwise(times)] == [120, 240, 480]


def test_who_comes_back_soon_is_waited_for_and_who_does_not_is_given_up() -> None:
    planner = Planner(RULES)
    for now in range(400):
        workers = {P: 2, D: 2} if now < 50 else {P: 2, D: 1}
        planner.look(seen(now, workers, {P: 1.0, D: 1.0}))
        assert planner.wanted == ({P: 2, D: 2} if now < 350 else {P: 2, D: 1})


DEMANDS = st.floats(0, 8)
LOADS = st.fixed_dictionaries(dict.fromkeys(PAIR, DEMANDS))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), LOADS, st.sampled_from([RULES, SCALES]))
def test_a_steady_load_settles(prefill: int, decode: int, load: Mapping[Role, float], rules: Rules) -> None:
    cluster = plant(rules, prefill=prefill, decode=decode)
    cluster.pace_s = 5.0
    advices = cluster.run(lambda _: load, 2500)
    assert reversals(advices) == 0
    assert not cluster.run(lambda _: load, 1000)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(4, 800), LOADS, LOADS, st.sampled_from([RULES, SCALES]))
def test_a_square_wave_goes_back_seldom(
    prefill: int, decode: int, period_s: int, one: Mapping[Role, float], other: Mapping[Role, float], rules: Rules
) -> None:
    """Shorter than the hold: never. Longer: as often as it doubles into the period."""
    cluster = plant(rules, prefill=prefill, decode=decode)
    cluster.pace_s = 2.0
    for_s = 4000
    advices = cluster.run(wave(period_s, one, other), for_s)
    allowed = 0 if period_s <= rules.hold_s else 1 + math.log2(period_s / rules.hold_s) + for_s / rules.calm_s
    assert reversals(advices) <= allowed
    most = prefill + decode if not rules.most else rules.most
    assert len(advices) <= (most - 1) * (1 + 2 * allowed)
    assert min(cluster.lowest.values()) >= rules.least


def test_the_hardest_wave_ends_where_it_has_doubled_enough() -> None:
    """All of the load goes to and fro, slowly enough that each half could be followed."""
    cluster = plant(prefill=3, decode=3)
    advices = cluster.run(wave(400, {P: 5, D: 0.2}, {P: 0.2, D: 5}), 3600)
    assert 1 <= reversals(advices) <= 1 + math.log2(400 / 30)
    late = [at_s for at_s, _ in cluster.followed if at_s > 2000]
    assert not late


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_whatever_comes_no_role_falls_below_its_least_and_one_change_is_made_at_a_time(data: st.DataObject) -> None:
    least = data.draw(st.integers(1, 2))
    cluster = plant(replace(SCALES, least=least), prefill=2, decode=3, unified=2)
    for _ in range(6):
        load = data.draw(st.fixed_dictionaries(dict.fromkeys(Role, DEMANDS)))
        cluster.run(lambda _, load=load: load, data.draw(st.integers(10, 300)))  # type: ignore[misc]
    assert min(cluster.lowest.values()) >= least
    assert sum(cluster.workers.values()) <= 12
    times = [at_s for at_s, _ in cluster.followed]
    assert all(b - a >= cluster.delay_s + RULES.rest_s for a, b in itertools.pairwise(times))


def held_by(rules: Rules, workers: Mapping[Role, int], demand: Mapping[Role, float], at_s: float = 0.0) -> Bound | None:
    """What keeps a change back at a first look."""
    advice = Planner(rules).look(seen(at_s, workers, demand))
    assert advice.change is Change.KEEP
    return advice.held_by


def test_what_keeps_a_change_back_is_said() -> None:
    assert held_by(RULES, {P: 2, D: 2}, {P: 1.0, D: 1.0}) is None
    assert held_by(RULES, {P: 2, D: 3}, {P: 3.0, D: 1.0}) is Bound.HOLD
    assert held_by(RULES, {P: 2, D: 3}, {P: 1.8, D: 0.5}) is Bound.EASE
    assert held_by(RULES, {P: 2, D: 3}, {P: 3.0, D: 2.0}) is Bound.NOBODY
    assert held_by(RULES, {P: 2, D: 1}, {P: 3.0, D: 0.1}) is Bound.LEAST
    assert held_by(replace(RULES, most=5), {P: 2, D: 3}, {P: 3.0, D: 2.0}) is Bound.MOST
    assert held_by(SCALES, {P: 2, D: 3}, {P: 3.0, D: 2.0}) is Bound.HOLD
    assert held_by(SCALES, {P: 2, D: 3}, {P: 0.1, D: 1.0}) is Bound.HOLD


def test_while_a_change_is_made_and_after_it_that_keeps_the_next_one_back() -> None:
    planner, told = Planner(RULES), list[Bound | None]()
    for now in range(200):
        workers = {P: 2, D: 3} if now < 50 else {P: 3, D: 2}
        told.append(planner.look(seen(now, workers, {P: 4.0, D: 0.2})).held_by)
    assert told == [Bound.HOLD] * 30 + [None] + [Bound.CHANGE] * 19 + [Bound.REST] * 60 + [None] + [Bound.CHANGE] * 89
