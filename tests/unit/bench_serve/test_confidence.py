"""How sure a number is."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.cli.bench_serve.confidence import Method, of_repeats, ratio_of_repeats, ratio_of_requests, t_975

MEAN = partial(np.mean, axis=1)
ABOVE_0 = st.floats(0.01, 1000)


@pytest.mark.parametrize(
    ("freedom", "known"), [(1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (30, 2.042), (40, 2.021), (120, 1.980)]
)
def test_students_t_is_that_of_the_tables(freedom: int, known: float) -> None:
    assert t_975(freedom) == pytest.approx(known, rel=1e-3)


def test_students_t_falls() -> None:
    values = [t_975(freedom) for freedom in range(1, 200)]
    assert values == sorted(values, reverse=True)


def test_an_interval_of_known_values() -> None:
    found = of_repeats([10, 12, 14])
    # Deviation 2, so 4.3027 * 2 / sqrt(3).
    assert (found.value, found.method) == (12, Method.REPEATS)
    assert found.high - 12 == pytest.approx(4.9683, abs=1e-3)
    assert 12 - found.low == pytest.approx(4.9683, abs=1e-3)


def test_one_run_knows_nothing_of_its_confidence() -> None:
    found = of_repeats([3.0])
    assert (found.low, found.high, found.method) == (3.0, 3.0, Method.NONE)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    dice = np.random.default_rng(5)
    held = sum((found := of_repeats(dice.normal(50, 8, 5).tolist())).low <= 50 <= found.high for _ in range(2000))
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


@settings(deadline=None)
@given(st.lists(ABOVE_0, min_size=2, max_size=10), st.floats(0.1, 10))
def test_a_ratio_that_is_always_the_same_is_certain(first: list[float], ratio: float) -> None:
    found = ratio_of_repeats(first, [value * ratio for value in first])
    assert (found.value, found.low, found.high) == pytest.approx((ratio, ratio, ratio))


@settings(deadline=None)
@given(st.lists(st.tuples(ABOVE_0, ABOVE_0), min_size=2, max_size=10))
def test_a_ratio_the_other_way_round_is_its_inverse(pairs: list[tuple[float, float]]) -> None:
    first, second = zip(*pairs, strict=True)
    one, other = ratio_of_repeats(first, second), ratio_of_repeats(second, first)
    assert one.value == pytest.approx(1 / other.value)
    assert one.low <= one.value <= one.high
    if other.high < 1e200:
        assert one.low == pytest.approx(1 / other.high)


def test_pairs_of_requests_tell_more_than_their_distributions() -> None:
    dice = np.random.default_rng(2)
    first = dice.exponential(100, 300) + 1
    found = ratio_of_requests(first, first * dice.normal(1.1, 0.02, 300), MEAN)
    assert found.value == pytest.approx(1.1, rel=0.01)
    assert 1.08 < found.low < found.value < found.high < 1.12
    assert found == ratio_of_requests(first, found_again(first), MEAN)


def found_again(first: np.ndarray) -> np.ndarray:
    dice = np.random.default_rng(2)
    dice.exponential(100, 300)
    return first * dice.normal(1.1, 0.02, 300)
