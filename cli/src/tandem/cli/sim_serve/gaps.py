"""Gaps between tokens, counted in bins of one percent: there are too many to keep each. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

BIN: Final = math.log(1.01)


class Gaps:
    """A histogram."""

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()
        self._count = 0
        self._total_s = 0.0

    def add(self, gap_s: float, count: int) -> None:
        """So many gaps of that length, above 0."""
        self._bins[round(math.log(max(gap_s, 1e-9)) / BIN)] += count
        self._count += count
        self._total_s += gap_s * count

    def spread(self, offsets_s: Sequence[float]) -> Gaps:
        """As if equal shares of the gaps of each length were longer by each offset; by none: as they are."""
        if not offsets_s:
            return self
        found = Gaps()
        for where, count in self._bins.items():
            share, more = divmod(count, len(offsets_s))
            for offset_s in offsets_s:
                found.add(max(math.exp(where * BIN) + offset_s, 1e-6), share)
            if more:
                found.add(math.exp(where * BIN), more)
        return found

    @property
    def count(self) -> int:
        """Of all."""
        return self._count

    @property
    def mean_s(self) -> float:
        """0 if there are none."""
        return self._total_s / self._count if self._count else 0.0

    def quantile_s(self, share: float) -> float:
        """At most half a percent off; 0 if there are none. share: 0..1."""
        wanted, seen = share * self._count, 0
        for where in sorted(self._bins):
            seen += self._bins[where]
            if seen >= wanted:
                return math.exp(where * BIN)
        return 0.0
