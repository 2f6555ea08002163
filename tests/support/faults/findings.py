"""What one cell of the matrix has brought, and what of it is not as it should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.support.faults.cells import Cell
from tests.support.faults.load import Outcome, Request


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one cell."""

    cell: Cell
    outcomes: Mapping[Outcome, int]
    """Requests by what became of them."""
    reasons: Mapping[str, int]
    """Errors by their reason."""
    repeated: int
    """Attempts that the gateway repeated on other workers."""
    went_on: int
    """Right answers that went on on other workers after a part of them was out."""
    seconds: float
    """From the fault, or from its end where the gateway was stopped, to the last outcome."""
    bound_s: float
    """What `seconds` may be."""
    silence_s: float
    """Longest time, from the same moment on, in which a stream that was answered said nothing."""
    silence_bound_s: float
    """What that may be."""
    leaked: int
    """Pages, rows and states that nobody uses and nobody can have, once the system is idle again."""
    stuck: int
    """Rooms that have not ended by then."""
    whole_s: float
    """From the fault until every worker serves again."""

    @property
    def late(self) -> bool:
        """Whether somebody waited too long."""
        return self.seconds > self.bound_s or self.silence_s > self.silence_bound_s

    @property
    def problems(self) -> tuple[str, ...]:
        """What must not be; empty if all is well."""
        return tuple(self._problems())

    def _problems(self) -> Iterator[str]:
        for outcome in (Outcome.WRONG, Outcome.HUNG):
            if count := self.outcomes.get(outcome, 0):
                yield f"{count} {outcome.value}"
        if self.seconds > self.bound_s:
            yield f"the last outcome came after {self.seconds:.1f} s, {self.bound_s:g} s are allowed"
        if self.silence_s > self.silence_bound_s:
            yield f"a stream said nothing for {self.silence_s:.1f} s, {self.silence_bound_s:g} s are allowed"
        if self.leaked:
            yield f"{self.leaked} entries leaked"
        if self.stuck:
            yield f"{self.stuck} rooms stuck"

    def __str__(self) -> str:
        """One line for people."""
        parts = [f"{count} {outcome.value}" for outcome, count in self.outcomes.items()]
        errors = ", ".join(f"{reason} {count}" for reason, count in self.reasons.items())
        said = f"{', '.join(parts)}{f' ({errors})' if errors else ''}, {self.repeated} repeated, {self.went_on} went on"
        seconds = f"{self.seconds:.2f} s (silent {self.silence_s:.2f} s)"
        return f"{self.cell}: {said}; {seconds}, whole after {self.whole_s:.1f} s"


def outcomes_of(requests: Sequence[Request]) -> dict[Outcome, int]:
    """How many ended how, in the order of Outcome."""
    counted = Counter(request.outcome or Outcome.HUNG for request in requests)
    return {outcome: counted[outcome] for outcome in Outcome if counted[outcome]}


def reasons_of(requests: Sequence[Request]) -> dict[str, int]:
    """Errors by reason."""
    return dict(sorted(Counter(one.reason for one in requests if one.outcome is Outcome.ERROR).items()))
