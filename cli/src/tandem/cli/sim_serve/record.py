"""What became of the requests of a run, in bounded memory."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Final

from tandem.cli.sim_serve.jobs import Job

MOST_ROWS: Final = 1 << 18
"""Of more requests only every second row is kept, or every fourth, and so on."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Of all answered requests."""

    answered: int
    first_s: float
    """When the first of them came; 0 if there are none."""
    e2e_s: float
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int


class Record:
    """Takes one answer after the other."""

    def __init__(self, most_rows: int = 0) -> None:
        """most_rows: even; 0: MOST_ROWS."""
        self._most = most_rows or MOST_ROWS
        self._every = 1
        self._answered, self._first_s, self._e2e_s = 0, float("inf"), 0.0
        self._tokens = [0, 0, 0]
        self.times = tuple(array("d") for _ in range(5))
        """Columns of seconds: when it came, TTFT, TPOT (0 of one token), E2E, the longest gap."""
        self.counts = tuple(array("q") for _ in range(3))
        """Columns of tokens: prompt, cached, new."""

    def add(self, job: Job) -> None:
        """One that is answered."""
        ask, e2e_s = job.ask, job.e2e_s
        counts = (job.prompt_tokens, job.cached_tokens, ask.new_tokens)
        self._answered += 1
        self._first_s = min(self._first_s, ask.at_s)
        self._e2e_s += e2e_s
        for place, count in enumerate(counts):
            self._tokens[place] += count
        if self._answered % self._every:
            return
        times = (ask.at_s, job.ttft_s, job.tpot_s, e2e_s, job.longest_gap_s)
        for column, seconds in zip(self.times, times, strict=True):
            column.append(seconds)
        for column_of_counts, count in zip(self.counts, counts, strict=True):
            column_of_counts.append(count)
        if len(self.counts[0]) >= self._most:
            self._every *= 2
            self.times = tuple(column[1::2] for column in self.times)
            self.counts = tuple(column[1::2] for column in self.counts)

    @property
    def totals(self) -> Totals:
        """Exact, whatever is kept."""
        return Totals(self._answered, self._first_s if self._answered else 0.0, self._e2e_s, *self._tokens)
