"""Unified workers beside pairs: which mixtures to try, and what they are given. Pure.

There are too many to try all. From the best splits on, workers of each role are made unified one after the other, for
as long as that helps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from tandem.cli.sizing.candidates import Arrangement, Candidate, Kind
from tandem.cli.sizing.goodput import Finding, Question
from tandem.core.placement import DEFAULT_UNIFIED_MAX_PROMPT_TOKENS

_STEPS: Final = ((1, 0), (0, 1), (1, 1))
"""Prefill and decode workers that are made unified at once."""


def mixtures(question: Question, parents: Iterable[Finding]) -> Iterator[Candidate]:
    """What is one step away from each of these, set up as it is; each arrangement once, the best parent's."""
    seen = set[Arrangement]()
    for parent in sorted(parents, key=lambda one: -one.goodput_per_s):
        if parent.candidate.arrangement.kind is Kind.UNIFIED:
            continue
        for one in _beside(parent.candidate.arrangement):
            if one not in seen:
                seen.add(one)
                for tokens in _short(question, one):
                    yield replace(parent.candidate, arrangement=one, short_tokens=tokens)


def _beside(one: Arrangement) -> Iterator[Arrangement]:
    for prefill, decode in _STEPS:
        if one.prefill > prefill and one.decode > decode:
            yield Arrangement(one.prefill - prefill, one.decode - decode, one.unified + prefill + decode)


def _short(question: Question, one: Arrangement) -> Sequence[int]:
    """What to call a short prompt: the default, and where the shortest prompts are as much of the work as the unified
    workers are of all."""
    asks, costs = question.sample.asks, question.model.engine
    work = sorted((ask.prompt_tokens, costs.prompt_s(ask.prompt_tokens, 0)) for ask in asks)
    wanted, done = sum(seconds for _, seconds in work) * one.unified / one.workers, 0.0
    limit = work[-1][0]
    for tokens, seconds in work:
        done += seconds
        if done >= wanted:
            limit = tokens
            break
    return list(dict.fromkeys((DEFAULT_UNIFIED_MAX_PROMPT_TOKENS, limit)))
