"""Line and dot charts as SVG texts, without anything from elsewhere. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

COLORS: Final = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
WIDTH, HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 30, 40
TICKS: Final = 5
SMALLEST: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Series:
    """Points with a name."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    dots: bool = False
    """Dots instead of a line."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels. Where all values are one, it is at the low end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        step = nice_step((self.high - self.low) / TICKS) if self.high > self.low else 1.0
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def nice_step(least: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is not below `least`; least: above 0."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def chart(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """An <svg> of all series; both axes begin at 0. Values that are no finite numbers are left out."""
    shown = [_finite(one) for one in series]
    xs = [x for one in shown for x in one.xs]
    ys = [y for one in shown for y in one.ys]
    across = _Scale(0, _top(xs), _LEFT, WIDTH - _RIGHT)
    up = _Scale(0, _top(ys), HEIGHT - _BOTTOM, _TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>']
    parts.append(f'<text x="{_LEFT}" y="16" class="title">{escape(title)}</text>')
    parts += [_grid(across, up, x_label, y_label)]
    for number, one in enumerate(shown):
        color = COLORS[number % len(COLORS)]
        points = [(across(x), up(y)) for x, y in zip(one.xs, one.ys, strict=True)]
        if one.dots:
            parts += [f'<circle cx="{x}" cy="{y}" r="1.8" fill="{color}" fill-opacity="0.55"/>' for x, y in points]
        else:
            path = " ".join(f"{x},{y}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
    parts += _legend(shown)
    return "".join([*parts, "</svg>"])


def _top(values: Sequence[float]) -> float:
    """Where an axis ends; 1 where there is nothing above 0 that could be told from it."""
    highest = max(values, default=0.0)
    return highest if highest > SMALLEST else 1.0


def _finite(one: Series) -> Series:
    points = [(x, y) for x, y in zip(one.xs, one.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return Series(one.name, [x for x, _ in points], [y for _, y in points], one.dots)


def _grid(across: _Scale, up: _Scale, x_label: str, y_label: str) -> str:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = [f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" class="axis"/>']
    for tick in across.ticks():
        parts.append(f'<text x="{across(tick)}" y="{bottom + 14}" class="x">{tick:g}</text>')
    for tick in up.ticks():
        parts.append(f'<path d="M{_LEFT} {up(tick)}H{right}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{up(tick) + 4}" class="y">{tick:g}</text>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 8}" class="x">{escape(x_label)}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(f'<text x="14" y="{middle}" class="x" transform="rotate(-90 14 {middle})">{escape(y_label)}</text>')
    return "".join(parts)


def _legend(series: Sequence[Series]) -> list[str]:
    if len(series) < 2:
        return []
    step = min(90, (WIDTH - _LEFT - 200) // len(series))
    return [
        f'<text x="{WIDTH - _RIGHT - (len(series) - number) * step}" y="16" fill="{COLORS[number % len(COLORS)]}">'
        f"{escape(one.name)}</text>"
        for number, one in enumerate(series)
    ]
