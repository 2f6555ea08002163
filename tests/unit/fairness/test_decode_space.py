"""Decode is asked for no more than its pages hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tandem.core.decode_space import Capacity, DecodeSpace
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.fair_queue import Ask, FairQueue, QueueLimits, State
from tandem.core.ids import Role
from tests.support.bootstrap.workers import worker

BIG = replace(worker("d0", Role.DECODE, incarnation=1), total_pages=10)
PAGE = BIG.layout.page_size


def queue_of(*pages: int, commit: float = 1) -> tuple[FairQueue, DecodeSpace, list[int]]:
    """Pages of each worker; the list may be changed."""
    held = list(pages)
    space = DecodeSpace(lambda _: Capacity.of([replace(BIG, total_pages=one) for one in held]), commit)
    return FairQueue(QueueLimits(places=100, max_waiting=100), space), space, held


def ask(pages: float, places: int = 1, pool: str = "tiny") -> Ask:
    """A request whose sequences need so many pages each."""
    tokens = int(pages * PAGE)
    return Ask("a", tokens * places, places, pool=pool, largest=tokens)


def test_what_does_not_fit_now_waits_until_it_does() -> None:
    queue, _, _ = queue_of(10)
    first, second = queue.offer(ask(6), 0), queue.offer(ask(6), 0)
    assert (first.state, second.state) == (State.GRANTED, State.WAITING)
    assert queue.leave(first, 1) == [second]


def test_a_page_that_is_begun_counts_whole() -> None:
    queue, _, _ = queue_of(2)
    states = [queue.offer(replace(ask(1), cost=1, largest=1), 0).state for _ in range(3)]
    assert states == [State.GRANTED, State.GRANTED, State.WAITING]


def test_models_do_not_take_each_others_pages() -> None:
    queue, _, _ = queue_of(10)
    assert [queue.offer(ask(10 - 1, pool=model), 0).state for model in "xy"] == [State.GRANTED] * 2


def test_what_no_worker_could_ever_hold_is_refused_for_good() -> None:
    queue, _, _ = queue_of(10, 4)
    with pytest.raises(TandemError, match=f"holds {10 * PAGE} at most") as refused:
        queue.offer(ask(11), 0)
    assert refused.value.reason is ErrorReason.INVALID_ARGUMENT
    assert queue.offer(ask(10), 0).state is State.GRANTED


def test_a_request_that_needs_more_than_all_of_them_runs_alone() -> None:
    queue, _, _ = queue_of(10)
    several = queue.offer(ask(8, places=3), 0)
    assert several.state is State.GRANTED
    assert queue.offer(ask(1), 0).state is State.WAITING
    queue.leave(several, 1)
    assert queue.offer(ask(1), 2).state is State.GRANTED


def test_a_worker_that_comes_makes_room() -> None:
    queue, space, held = queue_of(10)
    queue.offer(ask(9), 0)
    second = queue.offer(ask(9), 0)
    assert second.state is State.WAITING
    held.append(10)
    space.changed()
    assert queue.pump(1) == [second]


def test_nothing_is_lost_when_workers_change_while_it_runs() -> None:
    queue, space, held = queue_of(10)
    tickets = [queue.offer(ask(2), 0) for _ in range(3)]
    assert {ticket.state for ticket in tickets} == {State.GRANTED}
    held[:] = []
    space.changed()
    assert queue.offer(ask(3), 0).state is State.GRANTED, "where nobody decodes, the router says so"
    for ticket in tickets:
        queue.leave(ticket, 1)
    held[:] = [10]
    space.changed()
    assert [queue.offer(ask(2), 2).state for _ in range(3)] == [State.GRANTED] * 2 + [State.WAITING]


@pytest.mark.parametrize(("commit", "running"), [(1, 2), (2, 4), (0, 6)])
def test_pages_may_be_given_away_more_than_once(commit: float, running: int) -> None:
    queue, _, _ = queue_of(11, commit=commit)
    assert [queue.offer(ask(4.5), 0).state for _ in range(6)].count(State.GRANTED) == running
