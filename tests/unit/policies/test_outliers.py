"""Outliers: who fails more than the others of its role, by counts that fade."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.core.ids import Incarnation, WorkerId, WorkerLife
from tandem.core.outliers import Outliers, OutlierSettings

LIVES = [WorkerLife(WorkerId(f"w{number}"), Incarnation(1)) for number in range(4)]
SETTINGS = OutlierSettings(excess=0.2, min_rooms=20, half_life_s=30)


def counted(*rooms: tuple[int, int], settings: OutlierSettings = SETTINGS) -> Outliers:
    """Rooms of each worker at time 0, and how many of them failed."""
    book = Outliers(settings, 100)
    for life, (total, failed) in zip(LIVES, rooms, strict=False):
        for number in range(total):
            book.add(life, 0, failed=number < failed)
    return book


@pytest.mark.parametrize(
    ("rooms", "out"),
    [
        ([(20, 4), (20, 0), (20, 0)], True),
        ([(20, 3), (20, 0), (20, 0)], False),
        ([(19, 19), (40, 0)], False),
        ([(40, 40), (19, 0)], False),
        ([(40, 20), (40, 20), (40, 20)], False),
        ([(40, 20), (40, 0), (40, 20)], True),
        ([(40, 40)], False),
    ],
)
def test_a_worker_stands_out_by_its_share_and_only_where_enough_is_known(
    rooms: list[tuple[int, int]], out: bool
) -> None:
    assert counted(*rooms).stands_out(LIVES[0], 0) is out


def test_zero_excess_looks_at_nobody() -> None:
    book = counted((40, 40), (40, 0), settings=OutlierSettings(excess=0))
    assert not book.stands_out(LIVES[0], 0)


def test_what_was_long_ago_has_faded_and_what_is_forgotten_is_gone() -> None:
    book = counted((80, 80), (80, 0))
    assert book.stands_out(LIVES[0], 60)
    assert not book.stands_out(LIVES[0], 61), "fewer than twenty are left of eighty"
    book.forget(LIVES[0])
    assert not book.stands_out(LIVES[0], 0)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.booleans(), st.floats(0, 40), st.sampled_from(["add", "add", "add", "forget"])),
        max_size=80,
    )
)
def test_the_sum_is_that_of_all_workers_whatever_happened(steps: list[tuple[int, bool, float, str]]) -> None:
    book, now = Outliers(SETTINGS, 3), 0.0
    for which, failed, passed, what in steps:
        now += passed
        if what == "add":
            book.add(LIVES[which], now, failed=failed)
        else:
            book.forget(LIVES[which])
        assert len(book.lives) <= 3
    faded = [tally.plus(0, 0, now, SETTINGS.half_life_s) for tally in book._tallies.values()]
    total = book._all.plus(0, 0, now, SETTINGS.half_life_s)
    assert total.rooms == pytest.approx(sum(tally.rooms for tally in faded), abs=1e-6)
    assert total.failed == pytest.approx(sum(tally.failed for tally in faded), abs=1e-6)
