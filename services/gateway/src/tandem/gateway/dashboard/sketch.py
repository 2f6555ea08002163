"""Quantiles of durations in bounded memory: counts on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

MIN_S: Final = 1e-5
MAX_S: Final = 1e3
GROWTH: Final = 1.05
"""Upper bound of a step over its lower one, so that a quantile is off by 2.5 % at most."""
_PER_STEP: Final = 1 / math.log(GROWTH)


class Sketch:
    """Counts durations; holds 379 counters at most, however many durations it sees."""

    __slots__ = ("_counts", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.total = 0
        """Durations seen."""

    def add(self, seconds: float) -> None:
        """Counts a duration; outside of MIN_S..MAX_S it counts as the nearer of the two."""
        step = math.floor(math.log(min(max(seconds, MIN_S), MAX_S)) * _PER_STEP)
        self._counts[step] = self._counts.get(step, 0) + 1
        self.total += 1

    @property
    def counters(self) -> int:
        """Counters held."""
        return len(self._counts)

    def quantiles(self, shares: Sequence[float]) -> list[float | None]:
        """Per share (0..1, rising): seconds that so many of the durations do not exceed; None if there are none."""
        if not self.total:
            return [None] * len(shares)
        found: list[float | None] = []
        counted = 0
        for step, count in sorted(self._counts.items()):
            counted += count
            while len(found) < len(shares) and counted >= shares[len(found)] * self.total:
                found.append(math.exp((step + 0.5) / _PER_STEP))
        return found
