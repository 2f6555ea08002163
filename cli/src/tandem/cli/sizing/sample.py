"""The requests that every candidate is tried with: the same ones at any rate, closer together or less so. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

import numpy as np

from tandem.cli.bench_serve.run import Load, planned
from tandem.cli.sim_serve.cache import PrefixCache
from tandem.cli.sim_serve.jobs import Ask
from tandem.cli.sim_serve.report import ask_of

_NO_LIMIT: Final = 1 << 60
MAX_ROUNDS: Final = 10_000
"""Of a trace that is gone through again and again."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests at one a second on average, from 0 on, in the order of their times; at least one."""

    asks: Sequence[Ask]
    held_tokens: Sequence[int]
    """Of each prompt, what a cache that forgets nothing would hold."""

    def at(self, rate_per_s: float) -> Iterator[Ask]:
        """The same requests at that rate, above 0."""
        for ask in self.asks:
            yield Ask(ask.at_s / rate_per_s, ask.pieces, ask.new_tokens, ask.session, ask.prefix)

    @property
    def longest_tokens(self) -> int:
        """KV that the longest request comes to need."""
        return max(ask.prompt_tokens + ask.new_tokens for ask in self.asks)

    @property
    def mean_new_tokens(self) -> float:
        """Of an answer."""
        return float(np.mean([ask.new_tokens for ask in self.asks]))

    @property
    def held_share(self) -> float:
        """Of all prompt tokens, what that cache would hold."""
        return sum(self.held_tokens) / sum(ask.prompt_tokens for ask in self.asks)


def sample_of(load: Load, seed: int, requests: int) -> Sample:
    """So many of a load; its rate does not matter. A shorter trace begins anew, with prompts that share nothing with
    those of the round before."""
    found, origin = list[Ask](), 0.0
    for number in count(seed):
        rows = [ask_of(one) for one in planned(load, number)[0]]
        found += [Ask(origin + one.at_s, one.pieces, one.new_tokens, one.session, one.prefix) for one in rows]
        if len(found) >= requests or not load.trace or number - seed >= MAX_ROUNDS:
            break
        # The next round begins a mean gap after the last request.
        origin = found[-1].at_s * (len(found) + 1) / len(found) if found[-1].at_s else 0.0
    return sample_of_asks(found[:requests])


def sample_of_asks(asks: Sequence[Ask]) -> Sample:
    """Stretches their times to one request a second; where all have the same, they are a second apart. asks: at least
    one, in the order of their times."""
    start, span = asks[0].at_s, asks[-1].at_s - asks[0].at_s
    times = [(one.at_s - start) * (len(asks) - 1) / span if span else float(n) for n, one in enumerate(asks)]
    even = [
        Ask(at_s, one.pieces, one.new_tokens, one.session, one.prefix) for at_s, one in zip(times, asks, strict=True)
    ]
    cache, held = PrefixCache(_NO_LIMIT), list[int]()
    for one in even:
        held.append(min(cache.held(one.pieces), one.prompt_tokens - 1))
        cache.keep(one.pieces)
    return Sample(even, held)
