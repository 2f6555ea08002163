"""When requests are sent. Pure: seconds after the start, in order."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tandem.cli.bench_serve.choices import Arrivals

Times = NDArray[np.float64]


def times(arrivals: Arrivals, rate_per_s: float, count: int, dice: np.random.Generator) -> Times:
    """`count` times at a mean rate. rate_per_s: above 0; infinity sends all at once. The first may be later than 0."""
    if count < 0 or not rate_per_s > 0:
        raise ValueError("count is at least 0, rate_per_s is above 0")
    if np.isinf(rate_per_s):
        return np.zeros(count)
    if arrivals is Arrivals.CONSTANT:
        return np.arange(count) / rate_per_s
    return np.cumsum(dice.exponential(1 / rate_per_s, count))


def replayed(stamps_s: Iterable[float], speed: float) -> Times:
    """Times of a trace: from 0, in order, `speed` times as fast."""
    if not speed > 0:
        raise ValueError("speed is above 0")
    stamps = np.sort(np.fromiter(stamps_s, np.float64))
    return (stamps - stamps[0]) / speed if len(stamps) else stamps
