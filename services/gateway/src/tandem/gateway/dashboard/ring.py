"""What happened in the last minutes, in buckets of a few seconds; older ones are written over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from tandem.gateway.dashboard.sketch import Sketch

BUCKET_S: Final = 5
BUCKETS: Final = 120
_SHORTEST_S: Final = 1.0
"""The first bucket of all is taken for this long at least, so that its rates do not jump."""


@dataclass(slots=True)
class Bucket:
    """What happened in BUCKET_S seconds."""

    number: int
    """Its place on the clock: it begins at number * BUCKET_S monotonic seconds."""
    requests: int = 0
    errors: int = 0
    tokens: int = 0
    ttft: Sketch = field(default_factory=Sketch)
    itl: Sketch = field(default_factory=Sketch)

    def plus(self, other: Self) -> Bucket:
        """What happened to both in the same seconds."""
        return Bucket(
            self.number,
            self.requests + other.requests,
            self.errors + other.errors,
            self.tokens + other.tokens,
            self.ttft.plus(other.ttft),
            self.itl.plus(other.itl),
        )


@dataclass(frozen=True, slots=True)
class Series:
    """Equally spaced points, the oldest first; the last is of the bucket that still runs. None = nothing is known."""

    bucket_s: int
    requests_per_s: list[float | None]
    errors_per_s: list[float | None]
    tokens_per_s: list[float | None]
    ttft_p50_ms: list[float | None]
    ttft_p95_ms: list[float | None]
    itl_p50_ms: list[float | None]
    itl_p95_ms: list[float | None]


class Ring:
    """The last BUCKETS buckets. Time never goes back."""

    def __init__(self, began: float) -> None:
        """began: monotonic seconds since when everything is told to it."""
        self._first = int(began // BUCKET_S)
        self._buckets: list[Bucket | None] = [None] * BUCKETS

    def at(self, now: float) -> Bucket:
        """The bucket of this moment. now: monotonic seconds."""
        number = int(now // BUCKET_S)
        bucket = self._buckets[number % BUCKETS]
        if bucket is None or bucket.number != number:
            bucket = self._buckets[number % BUCKETS] = Bucket(number)
        return bucket

    def last(self, now: float) -> list[Bucket]:
        """At most BUCKETS buckets up to this moment, empty where nothing happened; none for times before it began."""
        return [held for number in _numbers(now) if (held := self._held(number)) is not None]

    def _held(self, number: int) -> Bucket | None:
        held = self._buckets[number % BUCKETS]
        if held is not None and held.number == number:
            return held
        return Bucket(number) if number >= self._first else None


def _numbers(now: float) -> range:
    newest = int(now // BUCKET_S)
    return range(newest - BUCKETS + 1, newest + 1)


def series(held: Iterable[Bucket], now: float) -> Series:
    """Points up to the moment now, of what one or several rings hold; their clock is the same."""
    found: dict[int, Bucket] = {}
    for one in held:
        known = found.get(one.number)
        found[one.number] = one if known is None else known.plus(one)
    return _points([found.get(number) for number in _numbers(now)], now)


def _points(buckets: Sequence[Bucket | None], now: float) -> Series:
    ttft = [_quantiles_ms(None if one is None else one.ttft) for one in buckets]
    itl = [_quantiles_ms(None if one is None else one.itl) for one in buckets]
    return Series(
        bucket_s=BUCKET_S,
        requests_per_s=_rates([None if one is None else one.requests for one in buckets], now),
        errors_per_s=_rates([None if one is None else one.errors for one in buckets], now),
        tokens_per_s=_rates([None if one is None else one.tokens for one in buckets], now),
        ttft_p50_ms=[p50 for p50, _ in ttft],
        ttft_p95_ms=[p95 for _, p95 in ttft],
        itl_p50_ms=[p50 for p50, _ in itl],
        itl_p95_ms=[p95 for _, p95 in itl],
    )


def _rates(counts: list[int | None], now: float) -> list[float | None]:
    """Per second. The bucket that still runs is taken together with the one before it, so that it is no short one."""
    *whole, before, running = counts
    count, span_s = running or 0, max(_SHORTEST_S, now % BUCKET_S)
    if before is not None:
        count, span_s = count + before, BUCKET_S + now % BUCKET_S
    rates = [None if one is None else round(one / BUCKET_S, 2) for one in (*whole, before)]
    return [*rates, round(count / span_s, 2)]


def _quantiles_ms(sketch: Sketch | None) -> list[float | None]:
    if sketch is None:
        return [None, None]
    return [None if value is None else round(value * 1000, 3) for value in sketch.quantiles((0.5, 0.95))]
