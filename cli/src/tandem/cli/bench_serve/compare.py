"""Two results side by side: ratios with their confidence, paired by repeat or by request. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tandem.cli.bench_serve.confidence import (
    Interval,
    Method,
    Statistic,
    ratio_of_repeats,
    ratio_of_requests,
)
from tandem.cli.bench_serve.document import Result

HIGHER_IS_BETTER: Final = ("requests_per_s", "output_tokens_per_s", "goodput_per_s", "slo_share")
LOWER_IS_BETTER: Final = tuple(
    f"{name}.{statistic}" for name in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms") for statistic in ("mean", "p50", "p99")
)
_PER_REQUEST: Final = ("ttft_ms", "tpot_ms", "e2e_ms")
_STATISTICS: Final[dict[str, Statistic]] = {
    "mean": lambda rows: np.asarray(np.mean(rows, axis=1)),
    "p50": lambda rows: np.asarray(np.percentile(rows, 50, axis=1)),
    "p99": lambda rows: np.asarray(np.percentile(rows, 99, axis=1)),
}


class Verdict(Enum):
    """What a ratio says of the second result."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "no difference seen"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Row:
    """One number of both results."""

    name: str
    first: float
    second: float
    ratio: Interval
    """second / first."""
    verdict: Verdict


def rows(first: Result, second: Result) -> list[Row]:
    """Every number that both have and that is above 0 in both.

    With at least two repeats of the same seeds in both, pairs are repeats; with one repeat of the same seed each, they
    are the requests that both answered. Where neither holds, a ratio has no interval.
    """
    return list(_rows(first, second))


def _rows(first: Result, second: Result) -> Iterator[Row]:
    paired = len(first.seeds) >= 2 and first.seeds == second.seeds
    ours, theirs = first.intervals(), second.intervals()
    for name in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER):
        if name not in ours or name not in theirs:
            continue
        values = [[one[name] for one in result.numbers] for result in (first, second)]
        if min(map(min, values)) <= 0:
            continue
        ratio = ratio_of_repeats(*values) if paired else _by_request(first, second, name)
        if ratio is None:
            plain = theirs[name].value / ours[name].value
            ratio = Interval(plain, plain, plain, Method.NONE)
        yield Row(name, ours[name].value, theirs[name].value, ratio, verdict(ratio, name in HIGHER_IS_BETTER))


def _by_request(first: Result, second: Result, name: str) -> Interval | None:
    metric, _, statistic = name.partition(".")
    if metric not in _PER_REQUEST or len(first.seeds) != 1 or first.seeds != second.seeds:
        return None
    sides = [result.requests[0] for result in (first, second)]
    if sides[0]["at_s"] != sides[1]["at_s"]:
        return None
    both = np.logical_and.reduce([_answered(side["error"], side[metric]) for side in sides])
    if not both.any():
        return None
    before, after = (np.array(side[metric], np.float64)[both] for side in sides)
    return ratio_of_requests(before, after, _STATISTICS[statistic])


def _answered(errors: list[str], values: list[float]) -> NDArray[np.bool_]:
    return np.array([not error and value > 0 for error, value in zip(errors, values, strict=True)], bool)


def verdict(ratio: Interval, higher_is_better: bool) -> Verdict:
    """A difference counts only where the whole interval is on one side of 1."""
    if ratio.method is Method.NONE:
        return Verdict.UNKNOWN
    if ratio.low <= 1 <= ratio.high:
        return Verdict.SAME
    return Verdict.BETTER if (ratio.low > 1) == higher_is_better else Verdict.WORSE


def differences(first: Result, second: Result) -> list[str]:
    """Settings in which the two differ: what a comparison has to be read with."""
    names = sorted({*first.settings, *second.settings})
    return [
        f"{name}: {first.settings.get(name)} and {second.settings.get(name)}"
        for name in names
        if first.settings.get(name) != second.settings.get(name)
    ]
