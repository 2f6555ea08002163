"""The queue in front of the places: shares, classes, bounds, and that nothing waits for ever."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.fair_queue import Ask, Boundless, FairQueue, Priority, QueueLimits, State, Ticket


class Load:
    """Plays the gateway: offers requests, ends them, and counts what each tenant was served."""

    def __init__(self, limits: QueueLimits) -> None:
        self.queue = FairQueue(limits)
        self.now = 0.0
        self.running: list[Ticket] = []
        self.served: Counter[str] = Counter()

    def offer(self, ask: Ask) -> Ticket:
        ticket = self.queue.offer(ask, self.now)
        self._granted([ticket] if ticket.state is State.GRANTED else [])
        return ticket

    def end_one(self, after_s: float = 1.0) -> None:
        self.now += after_s
        self._granted(self.queue.leave(self.running.pop(0), self.now))

    def _granted(self, tickets: list[Ticket]) -> None:
        self.running += tickets
        for ticket in tickets:
            self.served[ticket.ask.tenant] += ticket.ask.cost


def backlog(load: Load, asks: dict[str, Ask], depth: int) -> None:
    for _ in range(depth):
        for ask in asks.values():
            load.offer(ask)


@pytest.mark.parametrize(("costs", "weights"), [((10, 10), (1, 3)), ((100, 7), (1, 3)), ((5, 50), (2, 1))])
def test_tenants_get_tokens_by_their_weights(costs: tuple[int, int], weights: tuple[int, int]) -> None:
    load = Load(QueueLimits(places=4, max_waiting=10_000))
    asks = {name: Ask(name, cost, weight=weight) for name, cost, weight in zip("ab", costs, weights, strict=True)}
    backlog(load, asks, 2000)
    before = Counter(load.served)
    for _ in range(800):
        load.end_one()
    got = {name: load.served[name] - before[name] for name in "ab"}
    assert got["a"] / weights[0] == pytest.approx(got["b"] / weights[1], rel=0.1)


def test_a_flood_before_does_not_count_against_who_comes_later() -> None:
    load = Load(QueueLimits(places=1, max_waiting=1000))
    for _ in range(500):
        load.offer(Ask("flood", 10))
    late = load.offer(Ask("late", 10))
    load.end_one()
    load.end_one()
    assert late.state is not State.WAITING


def test_who_was_idle_has_saved_nothing() -> None:
    load = Load(QueueLimits(places=1, max_waiting=1000))
    for _ in range(100):
        load.offer(Ask("busy", 10))
    for _ in range(50):
        load.end_one()
    for _ in range(50):
        load.offer(Ask("idle", 10))
    before = Counter(load.served)
    for _ in range(20):
        load.end_one()
    assert abs((load.served["idle"] - before["idle"]) - (load.served["busy"] - before["busy"])) <= 20


def test_a_higher_class_goes_first_and_a_lower_one_still_gets_something() -> None:
    load = Load(QueueLimits(places=1, max_waiting=100_000))
    load.offer(Ask("first", 1))
    for _ in range(2000):
        for priority in reversed(Priority):
            load.offer(Ask("one", 10, priority=priority))
    order: list[Priority] = []
    for _ in range(730):
        load.end_one()
        order += [ticket.ask.priority for ticket in load.running]
    assert order[0] is Priority.HIGH
    counts = Counter(order)
    assert counts[Priority.HIGH] > 6 * counts[Priority.NORMAL] > 36 * counts[Priority.LOW] > 0


def test_a_tenant_at_its_limit_blocks_nobody() -> None:
    load = Load(QueueLimits(places=3, max_waiting=100))
    tickets = [load.offer(Ask("narrow", 10, most=1)) for _ in range(5)]
    other = load.offer(Ask("other", 10))
    assert [ticket.state for ticket in tickets[:2]] == [State.GRANTED, State.WAITING]
    assert other.state is State.GRANTED
    load.end_one()
    assert tickets[1].state is State.GRANTED


def test_a_request_that_does_not_fit_lets_others_by_for_a_while_and_then_gets_what_comes_free() -> None:
    load = Load(QueueLimits(places=4, max_waiting=1000, patience_s=5))
    for _ in range(4):
        load.offer(Ask("small", 1))
    large = load.offer(Ask("large", 1, places=4))
    for _ in range(100):
        load.offer(Ask("small", 1))
    load.end_one()
    assert len(load.running) == 4, "the place is used while the large one has patience"
    ended = 0
    while large.state is State.WAITING:
        load.end_one()
        ended += 1
        assert ended < 20
    assert load.running == [large]


def test_places_that_are_kept_for_one_are_not_given_to_who_comes_later() -> None:
    load = Load(QueueLimits(places=2, max_waiting=10, patience_s=1))
    for _ in range(2):
        load.offer(Ask("small", 1))
    large = load.offer(Ask("large", 1, places=2))
    load.end_one()
    load.queue.pump(load.now + 1)
    assert load.offer(Ask("new", 1)).state is State.WAITING
    load.end_one()
    assert large.state is State.GRANTED


def test_nothing_is_kept_for_one_that_has_gone() -> None:
    load = Load(QueueLimits(places=2, max_waiting=10, patience_s=1))
    load.offer(Ask("small", 1))
    large = load.offer(Ask("large", 1, places=2))
    for after_s in (0, 5):
        load.queue.pump(load.now + after_s)
    load.queue.leave(large, load.now)
    load.end_one()
    assert load.offer(Ask("new", 1)).state is State.GRANTED


def test_what_waits_for_one_pool_is_not_held_up_by_another() -> None:
    free = {"x": 0, "y": 10}

    class Pools(Boundless):
        kept: str | None = None

        def fits(self, ask: Ask) -> bool:
            return free[ask.pool] >= ask.cost and ask.pool != self.kept

        def put_aside(self, ask: Ask) -> None:
            self.kept = ask.pool

        def put_back(self) -> None:
            self.kept = None

    queue = FairQueue(QueueLimits(places=10, max_waiting=10, patience_s=1), Pools())
    large = queue.offer(Ask("a", 5, pool="x"), 0)
    assert queue.pump(10) == queue.pump(20) == []
    assert queue.offer(Ask("b", 5, pool="y"), 20).state is State.GRANTED
    free["x"] = 3
    small = queue.offer(Ask("b", 1, pool="x"), 30)
    assert small.state is State.WAITING, "what is free is kept for the one that waited for too long"
    free["x"] = 6
    assert queue.pump(40) == [large, small]


def test_what_is_past_its_deadline_gets_no_place() -> None:
    load = Load(QueueLimits(places=1, max_waiting=10))
    load.offer(Ask("a", 1))
    late, good = load.offer(Ask("a", 1, deadline=0.5)), load.offer(Ask("a", 1, deadline=5))
    load.end_one()
    assert (late.state, good.state) == (State.EXPIRED, State.GRANTED)
    assert load.queue.waiting == load.queue.waiting_cost == 0
    assert load.queue.leave(late, 9) == []


def test_a_full_queue_refuses_and_tells_when_to_come_back() -> None:
    load = Load(QueueLimits(places=1, max_waiting=10))
    for _ in range(11):
        load.offer(Ask("a", 10))
    for _ in range(6):
        load.end_one()
        load.offer(Ask("a", 10))
    with pytest.raises(TandemError) as refused:
        load.offer(Ask("a", 10))
    assert refused.value.reason is ErrorReason.OVERLOADED
    assert refused.value.retry_after_s == pytest.approx(11, rel=0.2), "10 wait, one goes each second"


def test_a_request_that_would_be_too_late_is_refused_at_once() -> None:
    load = Load(QueueLimits(places=1, max_waiting=100))
    for _ in range(20):
        load.offer(Ask("a", 10))
    for _ in range(6):
        load.end_one()
    with pytest.raises(TandemError, match="Its turn would come in"):
        load.offer(Ask("a", 10, deadline=load.now + 5))
    assert load.offer(Ask("a", 10, deadline=load.now + 30)).state is State.WAITING
    assert load.offer(Ask("b", 10, deadline=load.now + 5)).state is State.WAITING, "nothing of its own is ahead"


def test_who_fills_the_queue_makes_way() -> None:
    load = Load(QueueLimits(places=1, max_waiting=4))
    flood = [load.offer(Ask("flood", 10)) for _ in range(5)]
    late = load.offer(Ask("late", 10))
    assert late.displaced == (flood[-1],)
    assert flood[-1].state is State.DISPLACED
    second = load.offer(Ask("late", 10))
    assert second.displaced == (flood[-2],)
    for name in ("late", "flood"):
        with pytest.raises(TandemError):
            load.offer(Ask(name, 10))
    urgent = load.offer(Ask("late", 1000, priority=Priority.HIGH))
    assert urgent.displaced, "a higher class goes before a lower one"
    assert load.queue.waiting == 4


def test_the_tokens_that_wait_are_bounded_and_one_may_wait_alone() -> None:
    load = Load(QueueLimits(places=1, max_waiting=100, max_waiting_cost=50))
    load.offer(Ask("a", 10))
    assert load.offer(Ask("a", 80)).state is State.WAITING
    with pytest.raises(TandemError):
        load.offer(Ask("a", 1))
    load.end_one()
    assert [load.offer(Ask("a", 25)).state for _ in range(2)] == [State.WAITING] * 2


@pytest.mark.parametrize("ask", [Ask("a", 1, places=5), Ask("a", 1, places=3, most=2)])
def test_what_can_never_run_is_refused_for_good(ask: Ask) -> None:
    with pytest.raises(TandemError) as refused:
        FairQueue(QueueLimits(places=4, max_waiting=10)).offer(ask, 0)
    assert refused.value.reason is ErrorReason.INVALID_ARGUMENT


MOST = {"a": 0, "b": 4, "c": 5}
ASKS = st.builds(
    Ask,
    tenant=st.sampled_from("abc"),
    cost=st.integers(1, 50),
    places=st.integers(1, 4),
    priority=st.sampled_from(Priority),
    deadline=st.sampled_from([5.0, 1e9]),
    weight=st.sampled_from([0.5, 1.0, 3.0]),
    pool=st.sampled_from("xy"),
).map(lambda ask: replace(ask, most=MOST[ask.tenant]))


@settings(deadline=None)
@given(st.lists(st.one_of(ASKS, st.integers(0, 30)), max_size=80))
def test_bounds_hold_and_nothing_is_left_behind(steps: list[Ask | int]) -> None:
    """A number ends or withdraws one of those that are there."""
    limits = QueueLimits(places=6, max_waiting=5, max_waiting_cost=100, patience_s=2)
    queue, now = FairQueue(limits), 0.0
    there: list[Ticket] = []
    for step in steps:
        now += 0.5
        if isinstance(step, int):
            if there:
                queue.leave(there.pop(step % len(there)), now)
        else:
            with suppress(TandemError):
                there.append(queue.offer(step, now))
        there = [ticket for ticket in there if ticket.state in (State.WAITING, State.GRANTED)]
        running = [ticket.ask for ticket in there if ticket.state is State.GRANTED]
        waiting = [ticket.ask for ticket in there if ticket.state is State.WAITING]
        assert queue.used == sum(ask.places for ask in running) <= limits.places
        assert queue.waiting == len(waiting) <= limits.max_waiting
        assert queue.waiting_cost == sum(ask.cost for ask in waiting)
        assert len(waiting) < 2 or queue.waiting_cost <= limits.max_waiting_cost
        for tenant, most in MOST.items():
            assert not most or sum(ask.places for ask in running if ask.tenant == tenant) <= most
    for ticket in there:
        queue.leave(ticket, now)
    assert queue.used == queue.waiting == queue.waiting_cost == 0


@settings(deadline=None)
@given(st.lists(ASKS.map(lambda ask: replace(ask, deadline=1e9)), min_size=1, max_size=60))
def test_whatever_waits_gets_its_place_in_the_end(asks: list[Ask]) -> None:
    """The oldest of those that run ends, again and again."""
    load = Load(QueueLimits(places=4, max_waiting=1000, patience_s=3))
    tickets = [load.offer(ask) for ask in asks]
    while load.running:
        load.end_one()
    assert {ticket.state for ticket in tickets} == {State.LEFT}


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 4), st.integers(1, 30))
def test_a_large_request_gets_in_under_a_flood_that_never_ends(places: int, cost: int) -> None:
    load = Load(QueueLimits(places=4, max_waiting=100, patience_s=3))
    for _ in range(8):
        load.offer(Ask("flood", 10))
    large = load.offer(Ask("large", cost, places=places))
    for _ in range(60):
        load.end_one()
        load.offer(Ask("flood", 10))
        if large.state is State.GRANTED:
            return
    raise AssertionError("it starved")
