"""What the benchmark makes of its measurements. Pure."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

PD: Final = "pd"
PLAIN: Final = "plain"
SIDES: Final = (PD, PLAIN)
TTFT_SLACK_MS: Final = 6.0
SHORT_TOKENS: Final = 32
LONG_TOKENS: Final = 2000
TTFT_LONG_RATIO: Final = 1.03
PARALLEL_RATIO: Final = 0.9


@dataclass(frozen=True, slots=True)
class Timing:
    """One streamed answer."""

    ttft_ms: float
    """From sending the request to its first token."""
    gaps_ms: tuple[float, ...]
    """Between two tokens that follow each other."""
    tokens: int
    """New tokens."""
    total_ms: float


@dataclass(frozen=True, slots=True)
class Row:
    """One side at one prompt length."""

    side: str
    prompt_tokens: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    tokens_per_s: float
    """Of one request at a time, decode only: 1 / mean gap."""


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to reach."""

    name: str
    value: float
    limit: float
    higher_is_better: bool
    unit: str

    @property
    def reached(self) -> bool:
        """Whether it is."""
        return self.value >= self.limit if self.higher_is_better else self.value <= self.limit


@dataclass(slots=True)
class Samples:
    """Everything measured."""

    timings: dict[tuple[str, int], list[Timing]] = field(default_factory=lambda: defaultdict(list))
    """By side and prompt length."""
    parallel: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Tokens per second of each round, by side."""

    def rows(self) -> list[Row]:
        """The table, by prompt length, PD first."""
        lengths = sorted({length for _, length in self.timings})
        return [_row(side, length, self.timings[side, length]) for length in lengths for side in SIDES]

    def parallel_tokens_per_s(self, side: str) -> float:
        """Median of the rounds."""
        return statistics.median(self.parallel[side])

    def targets(self) -> list[Target]:
        """What DESIGN asks for, as far as it was measured."""
        found = {(row.side, row.prompt_tokens): row for row in self.rows()}
        targets = []
        if (PD, SHORT_TOKENS) in found:
            slack = found[PD, SHORT_TOKENS].ttft_p50_ms - found[PLAIN, SHORT_TOKENS].ttft_p50_ms
            targets.append(Target(f"TTFT at {SHORT_TOKENS} tokens, PD - plain", slack, TTFT_SLACK_MS, False, "ms"))
        if (PD, LONG_TOKENS) in found:
            ratio = found[PD, LONG_TOKENS].ttft_p50_ms / found[PLAIN, LONG_TOKENS].ttft_p50_ms
            targets.append(Target(f"TTFT at {LONG_TOKENS} tokens, PD / plain", ratio, TTFT_LONG_RATIO, False, "x"))
        if self.parallel:
            ratio = self.parallel_tokens_per_s(PD) / self.parallel_tokens_per_s(PLAIN)
            targets.append(Target("8 in parallel, tok/s, PD / plain", ratio, PARALLEL_RATIO, True, "x"))
        return targets


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed; share in (0, 1]."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _row(side: str, prompt_tokens: int, timings: Iterable[Timing]) -> Row:
    timings = list(timings)
    ttfts = [timing.ttft_ms for timing in timings]
    gaps = [gap for timing in timings for gap in timing.gaps_ms]
    return Row(
        side,
        prompt_tokens,
        percentile(ttfts, 0.5),
        percentile(ttfts, 0.99),
        percentile(gaps, 0.5),
        percentile(gaps, 0.99),
        1000 / statistics.fmean(gaps),
    )
