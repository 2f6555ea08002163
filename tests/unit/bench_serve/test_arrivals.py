"""When requests are sent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.cli.bench_serve.arrivals import replayed, times
from tandem.cli.bench_serve.choices import Arrivals

RATES = st.floats(0.01, 10_000)


def dice(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(deadline=None)
@given(st.sampled_from(Arrivals), RATES, st.integers(0, 200), st.integers(0, 1 << 32))
def test_times_are_in_order_as_many_as_asked_for_and_follow_from_the_seed(arrivals, rate, count, seed) -> None:
    found = times(arrivals, rate, count, dice(seed))
    assert len(found) == count
    assert (found >= 0).all()
    assert (np.diff(found) >= 0).all()
    assert (found == times(arrivals, rate, count, dice(seed))).all()


@settings(deadline=None)
@given(RATES, st.integers(2, 200))
def test_a_constant_rate_has_equal_gaps(rate: float, count: int) -> None:
    found = times(Arrivals.CONSTANT, rate, count, dice())
    assert found[0] == 0
    assert np.diff(found) == pytest.approx(1 / rate, rel=1e-6)


def test_poisson_has_gaps_of_an_exponential_distribution() -> None:
    gaps = np.diff(times(Arrivals.POISSON, 50, 20_001, dice(1)))
    # Mean and deviation of the exponential distribution are both 1 / rate; its share below the mean is 1 - 1/e.
    assert gaps.mean() == pytest.approx(0.02, rel=0.03)
    assert gaps.std() == pytest.approx(0.02, rel=0.03)
    assert (gaps < 0.02).mean() == pytest.approx(1 - 1 / np.e, abs=0.01)


def test_an_infinite_rate_sends_all_at_once() -> None:
    assert times(Arrivals.POISSON, float("inf"), 3, dice()).tolist() == [0, 0, 0]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_is_above_0(rate: float) -> None:
    with pytest.raises(ValueError):
        times(Arrivals.POISSON, rate, 3, dice())


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0.1, 100))
def test_a_replay_begins_at_0_and_is_as_much_faster(stamps: list[float], speed: float) -> None:
    found = replayed(stamps, speed)
    assert found[0] == 0
    assert found[-1] == pytest.approx((max(stamps) - min(stamps)) / speed)
    assert (np.diff(found) >= 0).all()
