"""The circuit breaker: every pair of state and event, and its promises over any history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.core.breaker import LEAST_SHARE, MOST_TIMES, MOVES, Breaker, BreakerSettings, Event, State

SETTINGS = BreakerSettings(failures=3, open_s=5, slow_start_s=10)
FIRST = Breaker(since=0)


def after(*events: Event, start: Breaker = FIRST, now: float = 100) -> Breaker:
    """Each event of a room that was sent in the epoch of its time."""
    for event in events:
        start = start.step(event, start.epoch, now, SETTINGS)
    return start


OPENED = after(*[Event.FAILED] * 3)
PROBED = after(Event.SENT, start=OPENED, now=105)
IN_STATE = {State.CLOSED: after(*[Event.FAILED] * 2), State.OPEN: OPENED, State.HALF_OPEN: PROBED}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_pair_moves_as_the_table_says(state, event):
    before = IN_STATE[state]
    assert before.state is state
    stepped = before.step(event, before.epoch, 200, SETTINGS)
    assert stepped.state is MOVES.get((state, event), state)
    assert stepped.epoch == before.epoch + (stepped.state is not state)


def test_only_failures_in_a_row_open_it():
    assert after(Event.FAILED, Event.FAILED, Event.WELL, Event.FAILED, Event.FAILED).state is State.CLOSED
    assert after(Event.FAILED, Event.NEITHER, Event.SENT, Event.FAILED, Event.FAILED).state is State.OPEN
    never = BreakerSettings(failures=0)
    worker = FIRST
    for _ in range(50):
        worker = worker.step(Event.FAILED, worker.epoch, 1, never)
    assert worker.state is State.CLOSED


def test_it_takes_nothing_while_open_then_one_probe():
    assert [OPENED.takes(now) for now in (100, 104.9, 105, 200)] == [False, False, True, True]
    assert not PROBED.takes(1000)


def test_a_probe_closes_it_or_opens_it_for_as_long_again():
    assert after(Event.WELL, start=PROBED).takes(100)
    again = after(Event.FAILED, start=PROBED, now=106)
    assert [again.takes(now) for now in (106, 110.9, 111)] == [False, False, True]
    assert after(Event.NEITHER, start=PROBED, now=106).takes(106), "it told nothing: another one"


def test_what_may_be_eithers_tells_of_a_probe_only_where_the_worker_stood_out():
    assert after(Event.EITHERS, start=PROBED, now=106).takes(106)
    out = after(Event.EJECTED, Event.SENT, Event.WELL, Event.EJECTED, Event.SENT, Event.EITHERS, now=100)
    assert [out.takes(now) for now in (100, 109.9, 110)] == [False, False, True]
    assert out.ejections == 2


def test_one_failure_after_a_recovery_is_the_first_of_a_row():
    assert after(Event.WELL, Event.FAILED, Event.FAILED, start=PROBED).state is State.CLOSED


@pytest.mark.parametrize("event", [Event.WELL, Event.FAILED, Event.NEITHER])
def test_rooms_of_an_earlier_epoch_say_nothing(event):
    for worker in (OPENED, PROBED, after(Event.WELL, start=PROBED)):
        assert worker.step(event, worker.epoch - 1, 200, SETTINGS) == worker


def test_a_slow_start_grows_evenly_after_joining_and_after_recovering():
    assert [FIRST.share(now, SETTINGS) for now in (0, 5, 10, 99)] == [LEAST_SHARE, 0.5, 1, 1]
    back = after(Event.WELL, start=PROBED, now=300)
    assert [back.share(now, SETTINGS) for now in (300, 305, 310)] == [LEAST_SHARE, 0.5, 1]
    assert OPENED.share(1000, SETTINGS) == PROBED.share(1000, SETTINGS) == LEAST_SHARE
    assert FIRST.share(0, BreakerSettings(slow_start_s=0)) == 1


@given(st.lists(st.tuples(st.sampled_from(Event), st.booleans(), st.floats(0, 9)), max_size=60))
def test_after_any_history_a_worker_that_is_well_again_comes_back(history):
    worker, now = FIRST, 0.0
    for event, stale, passed in history:
        now += passed
        worker = worker.step(event, worker.epoch - stale, now, SETTINGS)
        assert LEAST_SHARE <= worker.share(now, SETTINGS) <= 1
    now += SETTINGS.open_s * MOST_TIMES
    if worker.state is not State.HALF_OPEN:
        assert worker.takes(now)
        worker = worker.step(Event.SENT, worker.epoch, now, SETTINGS)
    worker = worker.step(Event.WELL, worker.epoch, now, SETTINGS)
    assert worker.state is State.CLOSED
    assert worker.failures == 0
