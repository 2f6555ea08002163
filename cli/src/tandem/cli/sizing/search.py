"""The search among all that could be set up. Pure.

All splits are tried with the first policy and the first page size; the best of them, and unified workers, with every
policy; each of these with every page size, with the policy that was best for it; and from the best splits on, unified
workers beside them. What its bound says can't be better than what as few workers have reached already is not tried.
Nothing depends on how fast the machine is that searches, or on how many processes it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, TypeVar

from tandem.cli.sizing.candidates import Arrangement, Candidate, Kind, arrangements
from tandem.cli.sizing.capacity import Capacity, capacity_of
from tandem.cli.sizing.goodput import STEP, Finding, Question, bound_of, highest_rate, with_part
from tandem.cli.sizing.mixtures import mixtures
from tandem.core.policies import PolicyName

MOST_ROUNDS: Final = 4
"""Steps from a split into mixtures."""

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
    """Splits of each number of workers that are tried with every policy and page size, and mixed with unified ones."""
    mixed: bool = False
    """Whether unified workers are tried beside pairs."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that was found."""

    findings: Sequence[Finding]
    """The best of each arrangement that was tried: by number of workers, the highest goodput first."""
    variants: Sequence[Finding]
    """Everything that was tried."""
    skipped: Sequence[tuple[Arrangement, float]]
    """What was not, with its bound."""
    beaten: Sequence[Arrangement] = ()
    """Mixtures that were, and are not better than what as few workers reach otherwise."""


def search(question: Question, space: Space, each: Each = map) -> Outcome:
    """Tries what may be worth it. each: how the work is done."""
    capacity, measure = capacity_of(question.model, question.sample), partial(highest_rate, question)
    first, rest = _waves(capacity, space.workers)
    tried = list(each(measure, [_plain(one, space) for one in first]))
    hopeful = [one for one in rest if bound_of(capacity, one) > _reached(tried, one.workers)]
    tried += each(measure, [_plain(one, space) for one in hopeful])
    better = partial(_better, question)
    likely = _likely(tried, space)
    tried += each(better, list(_policies(likely, space)))
    tried += each(better, list(_pages(_best_of_each(tried), likely, space)))
    for _ in range(MOST_ROUNDS if space.mixed else 0):
        mixed = list(each(better, list(_mixtures(question, tried, space))))
        tried += mixed
        if not any(one.served for one in mixed):
            break
    best = _best_of_each(tried)
    beaten = [one for one in best if one.kind is Kind.MIXED and not one.served]
    findings = list(each(partial(with_part, question), [one for one in best if one not in beaten]))
    skipped = [(one, bound_of(capacity, one)) for one in rest if one not in hopeful]
    return Outcome(findings, tried, skipped, [one.candidate.arrangement for one in beaten])


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
        splits = [one for one in everything if one.workers == count and one.kind is Kind.PAIRS]
        first += [*splits[:1], Arrangement(unified=count)]
    return first, [one for one in everything if one not in first]


def _plain(one: Arrangement, space: Space) -> Candidate:
    return Candidate(one, space.policies[0], space.page_tokens[0])


def _reached(tried: Iterable[Finding], workers: int) -> float:
    return max((one.goodput_per_s for one in tried if one.workers <= workers), default=0.0)


def _better(question: Question, known: tuple[Candidate, float]) -> Finding:
    return highest_rate(question, *known)


def _likely(tried: Sequence[Finding], space: Space) -> list[Finding]:
    """The best splits of each number of workers, and unified ones."""
    found = list[Finding]()
    for count in space.workers:
        these = [one for one in tried if one.workers == count and one.served]
        found += [*_best_splits(these, space.deep), *(one for one in these if one.kind is Kind.UNIFIED)]
    return found


def _policies(likely: Sequence[Finding], space: Space) -> Iterator[tuple[Candidate, float]]:
    """These with every policy but the first, and what that one reaches."""
    for one in likely:
        for policy in space.policies[1:]:
            # Without pairs there is nothing that it could compare.
            if policy is not PolicyName.LEAST_COST or one.kind is not Kind.UNIFIED:
                yield replace(one.candidate, policy=policy), one.goodput_per_s


def _pages(best: Sequence[Finding], likely: Sequence[Finding], space: Space) -> Iterator[tuple[Candidate, float]]:
    """The same arrangements, each with the best of its policies and every page size but the first."""
    arrangements = {one.candidate.arrangement for one in likely}
    for one in best:
        if one.candidate.arrangement in arrangements:
            for tokens in space.page_tokens[1:]:
                yield replace(one.candidate, page_tokens=tokens), one.goodput_per_s


def _mixtures(question: Question, tried: Sequence[Finding], space: Space) -> Iterator[tuple[Candidate, float]]:
    """Of each number of workers, what is one step from its best splits and mixtures and was not tried yet; and the most
    that was reached with as few."""
    known, best = {one.candidate.arrangement for one in tried}, _best_of_each(tried)
    for count in space.workers:
        these = [one for one in best if one.workers == count and one.served]
        parents = [*_best_splits(these, space.deep), *(one for one in these if one.kind is Kind.MIXED)]
        for candidate in mixtures(question, parents):
            if candidate.arrangement not in known:
                yield candidate, _reached(tried, count)


def _best_splits(findings: Sequence[Finding], most: int) -> list[Finding]:
    splits = [one for one in findings if one.kind is Kind.PAIRS]
    return sorted(splits, key=lambda one: -one.goodput_per_s)[:most]


def _best_of_each(tried: Iterable[Finding]) -> list[Finding]:
    """The one that was tried first, unless another is better by more than a step: less may be chance."""
    best = dict[Arrangement, Finding]()
    for one in tried:
        known = best.get(one.candidate.arrangement)
        if known is None or one.goodput_per_s > known.goodput_per_s * STEP * (1 + 1e-9):
            best[one.candidate.arrangement] = one
    return sorted(best.values(), key=lambda one: (one.workers, -one.goodput_per_s, one.candidate.arrangement))
