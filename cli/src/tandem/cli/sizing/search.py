"""The search among all that could be set up. Pure.

All splits are tried with the first policy and the first page size; the best of them, and unified workers, with all.
What its bound says can't be better than what as few workers have reached already is not tried. Nothing depends on how
fast the machine is that searches, or on how many processes it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from tandem.cli.sizing.candidates import Arrangement, Candidate, arrangements
from tandem.cli.sizing.capacity import Capacity, capacity_of
from tandem.cli.sizing.goodput import STEP, Finding, Question, bound_of, highest_rate, with_part
from tandem.core.policies import PolicyName

Item = TypeVar("Item")


class Each(Protocol):
    """How the work is done: `map`, or that of several processes."""

    def __call__(self, work: Callable[[Item], Finding], items: Iterable[Item], /) -> Iterable[Finding]:
        """The work of each, in their order."""


@dataclass(frozen=True, slots=True)
class Space:
    """What is searched."""

    workers: Sequence[int]
    """Numbers of them, rising; at least one, above 0."""
    policies: Sequence[PolicyName]
    page_tokens: Sequence[int]
    deep: int = 3
    """Splits of each number of workers that are tried with every policy and page size."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that was found."""

    findings: Sequence[Finding]
    """The best of each arrangement that was tried: by number of workers, the highest goodput first."""
    variants: Sequence[Finding]
    """Everything that was tried."""
    skipped: Sequence[tuple[Arrangement, float]]
    """What was not, with its bound."""


def search(question: Question, space: Space, each: Each = map) -> Outcome:
    """Tries what may be worth it. each: how the work is done."""
    capacity, measure = capacity_of(question.model, question.sample), partial(highest_rate, question)
    first, rest = _waves(capacity, space.workers)
    tried = list(each(measure, [_plain(one, space) for one in first]))
    hopeful = [one for one in rest if bound_of(capacity, one) > _reached(tried, one.workers)]
    tried += each(measure, [_plain(one, space) for one in hopeful])
    tried += each(partial(_better, question), list(_variants(tried, space)))
    findings = list(each(partial(with_part, question), _best_of_each(tried)))
    return Outcome(findings, tried, [(one, bound_of(capacity, one)) for one in rest if one not in hopeful])


def frontier(findings: Iterable[Finding]) -> list[Finding]:
    """Those that no other one beats with as few workers; by number of workers."""
    found = list[Finding]()
    for one in sorted(findings, key=lambda one: (one.workers, -one.goodput_per_s)):
        if one.goodput_per_s > max((other.goodput_per_s for other in found), default=0.0):
            found.append(one)
    return found


def winner(findings: Iterable[Finding], rate_per_s: float = 0.0) -> Finding | None:
    """With a rate the fewest workers that reach it, and None if none do; else the most goodput per worker. None if
    nothing keeps the SLO at all."""
    best = frontier(findings)
    if rate_per_s:
        return next((one for one in best if one.goodput_per_s >= rate_per_s), None)
    return max(best, key=lambda one: (one.per_worker, one.goodput_per_s), default=None)


def _waves(capacity: Capacity, workers: Sequence[int]) -> tuple[list[Arrangement], list[Arrangement]]:
    """Of each number the likeliest split and unified workers, against which all others are held; then these."""
    everything = sorted(arrangements(workers), key=lambda one: (one.workers, -bound_of(capacity, one), one))
    first = list[Arrangement]()
    for count in workers:
        splits = [one for one in everything if one.workers == count and not one.unified]
        first += [*splits[:1], Arrangement(unified=count)]
    return first, [one for one in everything if one not in first]


def _plain(one: Arrangement, space: Space) -> Candidate:
    return Candidate(one, space.policies[0], space.page_tokens[0])


def _reached(tried: Iterable[Finding], workers: int) -> float:
    return max((one.goodput_per_s for one in tried if one.workers <= workers), default=0.0)


def _better(question: Question, known: tuple[Candidate, float]) -> Finding:
    return highest_rate(question, *known)


def _variants(tried: Sequence[Finding], space: Space) -> Iterator[tuple[Candidate, float]]:
    """The best splits of each number of workers, and unified ones, in all ways but the first; and what that reaches."""
    for count in space.workers:
        these = [one for one in tried if one.workers == count and one.served]
        splits = [one for one in these if not one.candidate.arrangement.unified]
        splits.sort(key=lambda one: -one.goodput_per_s)
        for one in (*splits[: space.deep], *(one for one in these if one.candidate.arrangement.unified)):
            ways = [(policy, tokens) for policy in space.policies for tokens in space.page_tokens]
            for policy, tokens in ways[1:]:
                yield Candidate(one.candidate.arrangement, policy, tokens), one.goodput_per_s


def _best_of_each(tried: Iterable[Finding]) -> list[Finding]:
    """The one that was tried first, unless another is better by more than a step: less may be chance."""
    best = dict[Arrangement, Finding]()
    for one in tried:
        known = best.get(one.candidate.arrangement)
        if known is None or one.goodput_per_s > known.goodput_per_s * STEP * (1 + 1e-9):
            best[one.candidate.arrangement] = one
    return sorted(best.values(), key=lambda one: (one.workers, -one.goodput_per_s, one.candidate.arrangement))
