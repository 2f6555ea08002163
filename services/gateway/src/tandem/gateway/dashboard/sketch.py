"""Quantiles of durations in bounded memory: counts on a logarithmic scale."""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

MIN_S: Final = 1e-5
MAX_S: Final = 1e3
GROWTH: Final = 1.05
"""Upper bound of a step over its lower one, so that a quantile is off by 2.5 % at most."""
_BOUNDS: Final = tuple(MIN_S * GROWTH**step for step in range(math.ceil(math.log(MAX_S / MIN_S, GROWTH)) + 1))


@dataclass(slots=True)
class Sketch:
    """Counts durations; holds one counter per step at most, 380, however many durations it sees."""

    counts: dict[int, int] = field(default_factory=dict)
    """By step."""
    total: int = 0
    """Durations seen."""

    def add(self, seconds: float) -> None:
        """Counts a duration; outside of MIN_S..MAX_S it counts as the nearer of the two."""
        step = bisect(_BOUNDS, seconds)
        self.counts[step] = self.counts.get(step, 0) + 1
        self.total += 1

    def plus(self, other: Self) -> Sketch:
        """All that both have seen."""
        return Sketch(dict(Counter(self.counts) + Counter(other.counts)), self.total + other.total)

    @property
    def counters(self) -> int:
        """Counters held."""
        return len(self.counts)

    def quantiles(self, shares: Sequence[float]) -> list[float | None]:
        """Per share (0..1, rising): seconds that so many of the durations do not exceed; None if there are none."""
        if not self.total:
            return [None] * len(shares)
        found: list[float | None] = []
        counted = 0
        for step, count in sorted(self.counts.items()):
            counted += count
            while len(found) < len(shares) and counted >= shares[len(found)] * self.total:
                found.append(_middle(step))
        return found


def _middle(step: int) -> float:
    """The duration that stands for all of a step."""
    return _BOUNDS[step - 1] * math.sqrt(GROWTH) if 0 < step < len(_BOUNDS) else (MAX_S if step else MIN_S)
