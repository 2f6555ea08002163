"""How sure a number is: Student's t over repeats, the bootstrap over requests. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 1000
MATRIX_VALUES: Final = 1 << 20
"""Of resampled requests that are held at once."""
# fmt: off
_T_975: Final = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
    2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484,
    2.0452, 2.0423,
)
# fmt: on
"""Student's t at 97.5 % with 1..30 degrees of freedom."""
_Z_975: Final = 1.95996

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""One number of each row of a matrix."""


class Method(Enum):
    """Where an interval comes from."""

    REPEATS = "t over repeats"
    REQUESTS = "bootstrap over requests"
    NONE = "one run"


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and where it lies with 95 % confidence; low = high = value where nothing is known of that."""

    value: float
    low: float
    high: float
    method: Method


def t_975(freedom: int) -> float:
    """Student's t at 97.5 %, to 0.1 %; freedom: at least 1."""
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    # The first two terms of its expansion around the normal distribution.
    return _Z_975 + (_Z_975**3 + _Z_975) / (4 * freedom)


def of_repeats(values: Sequence[float]) -> Interval:
    """The mean of a number that was measured once per repeat; at least one."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, mean, mean, Method.NONE)
    half = t_975(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, Method.REPEATS)


def ratio_of_repeats(first: Sequence[float], second: Sequence[float]) -> Interval:
    """second / first, paired repeat by repeat: the geometric mean. At least one pair, all above 0."""
    logs = of_repeats([math.log(after / before) for before, after in zip(first, second, strict=True)])
    return Interval(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high), logs.method)


def ratio_of_requests(
    first: NDArray[np.float64], second: NDArray[np.float64], statistic: Statistic, seed: int = 0
) -> Interval:
    """statistic(second) / statistic(first), where request i of both is the same; at least one, all above 0."""
    dice = np.random.default_rng(seed)
    value = statistic(second[np.newaxis])[0] / statistic(first[np.newaxis])[0]
    rows = max(1, MATRIX_VALUES // len(first))
    found = []
    for start in range(0, RESAMPLES, rows):
        chosen = dice.integers(len(first), size=(min(rows, RESAMPLES - start), len(first)))
        found.append(statistic(second[chosen]) / statistic(first[chosen]))
    low, high = np.percentile(np.concatenate(found), (2.5, 97.5))
    return Interval(float(value), float(low), float(high), Method.REQUESTS)
