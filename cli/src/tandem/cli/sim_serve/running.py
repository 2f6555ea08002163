"""The batch that a decode engine runs: when its next sequence ends, and which gaps its sequences see. Pure.

A step is not an event: between two changes of the batch all steps follow from one sum.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right

from tandem.cli.sim_serve.costs import EngineCosts
from tandem.cli.sim_serve.gaps import Gaps
from tandem.cli.sim_serve.jobs import Job


class RunningBatch:
    """Sequences that decode together."""

    def __init__(self, costs: EngineCosts, gaps: Gaps) -> None:
        """gaps: where those of all sequences are counted."""
        self._costs = costs
        self._gaps = gaps
        self._ends: list[tuple[int, int, Job]] = []
        """(step after which it ends, ticket, job)."""
        self._fresh: list[Job] = []
        """Those that have made no step yet: their first gap began with their first token."""
        self._tickets = 0
        self._step = 0
        self._context = 0
        self._highest: list[tuple[int, float]] = []
        """(last step of a stretch, its gap): longer gaps first; who joined before a step saw no longer one since."""

    def __len__(self) -> int:
        return len(self._ends)

    def join(self, job: Job) -> None:
        """A sequence whose first token is there comes in; it has more than one to go."""
        job.joined_step = self._step
        self._context += job.prompt_tokens + 1
        self._fresh.append(job)
        self._tickets += 1
        heapq.heappush(self._ends, (self._step + job.ask.new_tokens - 1, self._tickets, job))

    def steps_to_end(self) -> int:
        """Until the next sequence ends, at least 1; there is one."""
        return self._ends[0][0] - self._step

    def seconds(self, steps: int) -> float:
        """That they take."""
        return self._costs.steps_s(steps, len(self._ends), self._context)

    def steps_begun(self, seconds: float, most: int) -> int:
        """Steps that have begun that long after the first one, 1..most."""
        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.seconds(middle) >= seconds else (middle + 1, high)
        return low

    def advance(self, steps: int, began_s: float, stall_s: float = 0.0) -> list[Job]:
        """Steps are over; returns the sequences that end with them. began_s: when the first of them did. stall_s: how
        long nothing decoded before."""
        gap = self.seconds(steps) / steps
        for job in self._fresh:
            job.longest_gap_s = began_s + gap - job.first_token_s
            self._gaps.add(job.longest_gap_s, 1)
        self._saw(1, gap + stall_s, len(self._ends) - len(self._fresh))
        self._fresh.clear()
        if steps > 1:
            self._saw(steps - 1, gap, len(self._ends))
        ended = []
        while self._ends and self._ends[0][0] <= self._step:
            job = heapq.heappop(self._ends)[2]
            self._context -= job.prompt_tokens + job.ask.new_tokens
            job.longest_gap_s = max(job.longest_gap_s, self._longest_since(job.joined_step + 1))
            ended.append(job)
        return ended

    def _saw(self, steps: int, gap_s: float, sequences: int) -> None:
        self._step += steps
        self._context += steps * len(self._ends)
        if sequences:
            self._gaps.add(gap_s, steps * sequences)
        while self._highest and self._highest[-1][1] <= gap_s:
            self._highest.pop()
        self._highest.append((self._step, gap_s))

    def _longest_since(self, step: int) -> float:
        where = bisect_right(self._highest, (step, float("inf")))
        return self._highest[where][1] if where < len(self._highest) else 0.0
