"""What a run's outcomes say. Pure. The definitions are those of SGLang's bench_serving, so that figures compare.

TTFT: from the moment of sending, connecting included, to the first text. E2E: to the end of the stream. ITL: between
two pieces of text that follow each other; on /generate a piece of several tokens is as many equal gaps. TPOT: (E2E -
TTFT) / (tokens - 1) of each answer of at least two. Percentiles are interpolated between the two nearest. Rates are per
second from the run's first planned send to the end of its last request.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tandem.core.errors import ErrorReason, TandemError

DROPPED: Final = "dropped"
"""Error of a request that was not sent, as too many were in flight."""
LATENCIES: Final = ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")
STATISTICS: Final = ("mean", "p50", "p90", "p99")
_SLO: Final = re.compile(r"\s*(ttft|itl|tpot|e2e)\s*=\s*(\d+(?:\.\d+)?)\s*(ms|s)\s*")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request. Times are seconds from the run's start."""

    at_s: float
    """When it was to be sent."""
    sent_s: float
    """When it was; where it was dropped, when that was decided."""
    ended_s: float
    asked_tokens: int
    """New tokens that it asked for."""
    error: str = ""
    """Why it failed, as a short name; empty: it did not."""
    ttft_ms: float = 0.0
    gaps_ms: tuple[float, ...] = ()
    prompt_tokens: int = 0
    new_tokens: int = 0
    cached_tokens: int = 0

    @property
    def good(self) -> bool:
        """Whether it was answered."""
        return not self.error

    @property
    def e2e_ms(self) -> float:
        """From sending it to its end."""
        return (self.ended_s - self.sent_s) * 1000

    @property
    def tpot_ms(self) -> float:
        """Mean time per token after the first; 0 of an answer of one token."""
        return (self.e2e_ms - self.ttft_ms) / (self.new_tokens - 1) if self.new_tokens > 1 else 0.0

    @property
    def late_ms(self) -> float:
        """How much later than planned the generator itself was."""
        return (self.sent_s - self.at_s) * 1000


@dataclass(frozen=True, slots=True)
class Slo:
    """What an answer has to keep: every limit, in ms. itl: each gap of it, so the longest."""

    limits_ms: Mapping[str, float] = field(default_factory=dict)
    """Of ttft, itl, tpot, e2e."""

    def kept_by(self, outcome: Outcome) -> bool:
        """Whether an answer keeps all. A failed request keeps none."""
        seen: dict[str, Callable[[], float]] = {
            "ttft": lambda: outcome.ttft_ms,
            "itl": lambda: max(outcome.gaps_ms, default=0.0),
            "tpot": lambda: outcome.tpot_ms,
            "e2e": lambda: outcome.e2e_ms,
        }
        return outcome.good and all(seen[name]() <= limit for name, limit in self.limits_ms.items())


def parse_slo(text: str) -> Slo:
    """`ttft=1s,itl=50ms`; an empty text is no limit. Raises INVALID_ARGUMENT."""
    limits: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        match = _SLO.fullmatch(part)
        if match is None or match[1] in limits:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT,
                f"--slo {text!r} is not like ttft=1s,itl=50ms; there are ttft, itl, tpot and e2e, each at most once",
                field="slo",
            )
        limits[match[1]] = float(match[2]) * (1000 if match[3] == "s" else 1)
    return Slo(limits)


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution in ms."""

    mean: float
    p50: float
    p90: float
    p99: float


def spread(values: Sequence[float] | NDArray[np.float64]) -> Spread | None:
    """Of at least one value, else None."""
    if len(values) == 0:
        return None
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return Spread(float(np.mean(values)), p50, p90, p99)


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers."""

    planned: int
    """Requests whose time came, dropped ones too."""
    answered: int
    dropped: int
    """Not sent: too many were in flight."""
    errors: dict[str, int]
    """Failed requests by reason, without those that were dropped."""
    short: int
    """Answers with fewer tokens than were asked for."""
    duration_s: float
    requests_per_s: float
    """Answered ones."""
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    cached_share: float
    """Of the prompt tokens of answered requests, those that the server says it had; 0 where it does not say."""
    goodput_per_s: float
    """Answers within the SLO."""
    slo_share: float
    """Of the planned requests, those that were answered within the SLO."""
    mean_in_flight: float
    ttft_ms: Spread | None
    itl_ms: Spread | None
    tpot_ms: Spread | None
    e2e_ms: Spread | None
    late_ms: Spread | None
    """Of the generator itself."""


def summarize(outcomes: Sequence[Outcome], slo: Slo) -> Summary:
    """Of one run with at least one outcome."""
    good = [one for one in outcomes if one.good]
    start = min(one.at_s for one in outcomes)
    duration = max(max(one.ended_s for one in outcomes) - start, 1e-9)
    kept = sum(map(slo.kept_by, outcomes))
    prompt = sum(one.prompt_tokens for one in good)
    failed = Counter(one.error for one in outcomes if not one.good)
    return Summary(
        planned=len(outcomes),
        answered=len(good),
        dropped=failed.pop(DROPPED, 0),
        errors=dict(failed.most_common()),
        short=sum(one.new_tokens < one.asked_tokens for one in good),
        duration_s=duration,
        requests_per_s=len(good) / duration,
        prompt_tokens_per_s=prompt / duration,
        output_tokens_per_s=sum(one.new_tokens for one in good) / duration,
        cached_share=sum(one.cached_tokens for one in good) / prompt if prompt else 0.0,
        goodput_per_s=kept / duration,
        slo_share=kept / len(outcomes),
        mean_in_flight=sum(one.e2e_ms for one in good) / 1000 / duration,
        ttft_ms=spread([one.ttft_ms for one in good]),
        itl_ms=spread(gaps_ms(good)),
        tpot_ms=spread([one.tpot_ms for one in good if one.new_tokens > 1]),
        e2e_ms=spread([one.e2e_ms for one in good]),
        late_ms=spread([one.late_ms for one in outcomes if one.error != DROPPED]),
    )


def gaps_ms(outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """Every gap of all answers."""
    return np.fromiter(chain.from_iterable(one.gaps_ms for one in outcomes if one.good), np.float64)


def flat(summary: Summary) -> dict[str, float]:
    """Every number by a name such as `ttft_ms.p99` or `requests_per_s`; what was not measured is left out."""
    names = ("answered", "requests_per_s", "prompt_tokens_per_s", "output_tokens_per_s", "cached_share")
    found = {name: float(getattr(summary, name)) for name in (*names, "goodput_per_s", "slo_share", "mean_in_flight")}
    for name in (*LATENCIES, "late_ms"):
        one: Spread | None = getattr(summary, name)
        if one is not None:
            found |= {f"{name}.{statistic}": getattr(one, statistic) for statistic in STATISTICS}
    return found
