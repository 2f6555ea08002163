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


@dataclass(frozen=True, slots=True, order=True)
class Load:
    """Prompts that arrive while streams run."""

    prompt_tokens: int
    per_s: float
    """Arrivals per second; 0: none, the streams are undisturbed."""

    def __str__(self) -> str:
        return f"{self.prompt_tokens} tokens, {self.per_s:g}/s" if self.per_s else "undisturbed"


@dataclass(frozen=True, slots=True)
class Disturbed:
    """Streams that ran while prompts arrived, once."""

    streams: tuple[Timing, ...]
    arrivals: tuple[Timing, ...]
    seconds: float
    """From the first token of all streams to the last."""
    dropped: int = 0
    """Arrivals that were not sent, as too many others were unanswered."""

    @property
    def itl_p99_ms(self) -> float:
        """Of the streams."""
        return percentile([gap for one in self.streams for gap in one.gaps_ms], 0.99)


@dataclass(frozen=True, slots=True)
class DisturbedRow:
    """One side under one load, all rounds."""

    side: str
    load: str
    itl_p50_ms: float
    itl_p99_ms: float
    """The rounds' median."""
    itl_max_ms: float
    arrivals: int
    ttft_p50_ms: float | None
    """Of the prompts that arrived; None: there were none."""
    ttft_p99_ms: float | None
    tokens_per_s: float
    """New tokens of the streams."""
    dropped: int


@dataclass(frozen=True, slots=True)
class Gain:
    """What disaggregation does to ITL p99 under one load: PD / plain, round by round; below 1 is better."""

    load: Load
    median: float
    lowest: float
    highest: float

    @property
    def surely_better(self) -> bool:
        """In every round."""
        return self.highest < 1


@dataclass(frozen=True, slots=True)
class Part:
    """Where the time of one request at a time goes, medians."""

    side: str
    prompt_tokens: int
    prefill_ms: float
    """To the first token."""
    decode_ms: float
    """From there to the last one; with PD the KV moves meanwhile."""
    total_ms: float
    prefill_share: float
    """0..1."""


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
    disturbed: dict[tuple[str, Load], list[Disturbed]] = field(default_factory=lambda: defaultdict(list))
    """One of each round, by side and load."""

    def rows(self) -> list[Row]:
        """The table, by prompt length, PD first."""
        lengths = sorted({length for _, length in self.timings})
        return [_row(side, length, self.timings[side, length]) for length in lengths for side in SIDES]

    def parts(self) -> list[Part]:
        """Prefill, decode, total, by prompt length, PD first."""
        lengths = sorted({length for _, length in self.timings})
        return [_part(side, length, self.timings[side, length]) for length in lengths for side in SIDES]

    def disturbed_rows(self) -> list[DisturbedRow]:
        """By load, PD first."""
        return [_disturbed_row(side, load, self.disturbed[side, load]) for load in self.loads() for side in SIDES]

    def loads(self) -> list[Load]:
        """Those that were measured, in order."""
        return sorted({load for _, load in self.disturbed})

    def gains(self) -> list[Gain]:
        """By load, undisturbed included."""
        return [_gain(load, self.disturbed[PD, load], self.disturbed[PLAIN, load]) for load in self.loads()]

    def crossovers(self) -> dict[int, float | None]:
        """The least load per second from which PD has the lower ITL p99 in every round, by prompt length; None: no."""
        found: dict[int, float | None] = {}
        gains = [gain for gain in self.gains() if gain.load.per_s]
        for length in sorted({gain.load.prompt_tokens for gain in gains}):
            found[length] = None
            for gain in sorted(
                (one for one in gains if one.load.prompt_tokens == length), key=lambda one: -one.load.per_s
            ):
                if not gain.surely_better:
                    break
                found[length] = gain.load.per_s
        return found

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


def _part(side: str, prompt_tokens: int, timings: Sequence[Timing]) -> Part:
    prefill = statistics.median(one.ttft_ms for one in timings)
    decode = statistics.median(one.total_ms - one.ttft_ms for one in timings)
    total = statistics.median(one.total_ms for one in timings)
    share = statistics.median(one.ttft_ms / one.total_ms for one in timings)
    return Part(side, prompt_tokens, prefill, decode, total, share)


def _disturbed_row(side: str, load: Load, rounds: Sequence[Disturbed]) -> DisturbedRow:
    gaps = [gap for one in rounds for stream in one.streams for gap in stream.gaps_ms]
    ttfts = [arrival.ttft_ms for one in rounds for arrival in one.arrivals]
    return DisturbedRow(
        side,
        str(load),
        percentile(gaps, 0.5),
        statistics.median(one.itl_p99_ms for one in rounds),
        max(gaps),
        len(ttfts),
        percentile(ttfts, 0.5) if ttfts else None,
        percentile(ttfts, 0.99) if ttfts else None,
        statistics.median(sum(stream.tokens for stream in one.streams) / one.seconds for one in rounds),
        sum(one.dropped for one in rounds),
    )


def _gain(load: Load, ours: Sequence[Disturbed], plain: Sequence[Disturbed]) -> Gain:
    ratios = [mine.itl_p99_ms / theirs.itl_p99_ms for mine, theirs in zip(ours, plain, strict=True)]
    return Gain(load, statistics.median(ratios), min(ratios), max(ratios))
