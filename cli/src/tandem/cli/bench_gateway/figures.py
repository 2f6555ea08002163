"""What the benchmark makes of its measurements. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any, Final

DEFAULT: Final = "default"
QUICKACK: Final = "quickack"
MODES: Final = (DEFAULT, QUICKACK)
"""How clients acknowledge: as the kernel sees fit, or each read at once."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What one figure of ours is to be."""

    figure: str
    limit: float
    at_most: bool = True
    ratio: bool = False
    """It is about the ratio to the reference, not about the value."""


@dataclass(slots=True)
class Series:
    """One figure of one side, value by value, one per round."""

    figure: str
    side: str
    mode: str
    unit: str
    values: list[float] = field(default_factory=list)
    most_is_best: bool = False

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return median(self.values)


class Figures:
    """All of them."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, str], Series] = {}
        self.notes: list[str] = []
        """What was left out, and why."""

    def add(self, figure: str, side: str, mode: str, value: float, unit: str) -> None:
        """Notes the value of one round."""
        key = (figure, side, mode)
        if key not in self._series:
            self._series[key] = Series(figure, side, mode, unit)
        self._series[key].values.append(value)

    def all(self) -> list[Series]:
        """In the order in which they came."""
        return list(self._series.values())

    def find(self, figure: str, side: str, mode: str) -> Series | None:
        """One of them, if it was measured."""
        return self._series.get((figure, side, mode))

    def ratio(self, figure: str, side: str, mode: str, reference: str) -> tuple[float, float, float] | None:
        """Median and quartiles of the ratios to another side, round by round; None if either is missing."""
        ours, theirs = self.find(figure, side, mode), self.find(figure, reference, mode)
        if ours is None or theirs is None:
            return None
        ratios = [one / other for one, other in zip(ours.values, theirs.values, strict=False) if other > 0]
        if not ratios:
            return None
        if len(ratios) == 1:
            return ratios[0], ratios[0], ratios[0]
        low, middle, high = quantiles(ratios, n=4)
        return middle, low, high

    def document(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [
            {
                "figure": one.figure,
                "side": one.side,
                "mode": one.mode,
                "unit": one.unit,
                "value": one.value,
                "rounds": one.values,
            }
            for one in self.all()
        ]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed; share in (0, 1]. NaN if there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
