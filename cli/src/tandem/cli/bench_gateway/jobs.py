"""What a load is asked to do, and what it answers: one line of JSON each way, between two processes."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Final, Protocol

MOST_OF_THEM: Final = 0.9


class Kind(Enum):
    """Shapes of load."""

    PACED = "paced"
    """Requests at fixed moments; whole and streamed ones in turn."""
    STREAMS = "streams"
    """Streams at the same time, to their end."""
    WHOLE = "whole"
    """Clients that ask again as soon as they have their answer, which comes whole."""
    HOLD = "hold"
    """Streams that are opened and kept."""
    LEAVE = "leave"
    """Streams that are left before their first token."""


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of load."""

    kind: Kind
    model: str = "mock"
    connections: int = 1
    """STREAMS, HOLD: streams. WHOLE: clients. PACED: connections that are open before it begins."""
    requests: int = 0
    """PACED, WHOLE, LEAVE: in all."""
    tokens: int = 1
    """Of each answer."""
    prompt_words: int = 8
    per_second: float = 0
    """PACED: requests."""
    at_once: int = 50
    """HOLD: streams that are opened together."""
    leave_after_ms: float = 0
    pause_ms: float = 0
    """LEAVE: between one and the next."""
    timeout_s: float = 60

    def line(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self) | {"kind": self.kind.value})

    @classmethod
    def of_line(cls, line: str) -> Job:
        """From JSON."""
        fields = json.loads(line)
        return cls(**{**fields, "kind": Kind(fields["kind"])})


@dataclass(slots=True)
class Answered:
    """One answer. Times in seconds of time.perf_counter."""

    asked: float = 0
    status: int = 200
    reads: list[tuple[float, int]] = field(default_factory=list)
    """When a read brought some of the answer, and how many tokens: events with text, where events are all that there is
    to count."""
    told_tokens: int = 0
    """Of the whole answer, as a stream's last event says; 0 = it says nothing."""

    @property
    def tokens(self) -> int:
        """Tokens that came, of a stream."""
        return self.told_tokens or sum(tokens for _, tokens in self.reads)

    @property
    def first_ms(self) -> float:
        """To the first read that brought something."""
        return (self.reads[0][0] - self.asked) * 1000

    @property
    def gaps_ms(self) -> list[float]:
        """Between two tokens that follow each other; those of one read came at one time. Of events: those of one event
        count as one."""
        times = [when for when, tokens in self.reads for _ in range(tokens)]
        return [(after - before) * 1000 for before, after in itertools.pairwise(times)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job."""

    answers: int = 0
    failed: int = 0
    """Answers with a status other than 200, and streams that ended too early."""
    tokens: int = 0
    reads: int = 0
    whole_ms: list[float] = field(default_factory=list)
    """Answers that came whole, from the request to their end."""
    first_ms: list[float] = field(default_factory=list)
    """Streams, to their first chunk."""
    gaps_ms: list[float] = field(default_factory=list)
    """Streams, between tokens."""
    left_ns: list[tuple[int, int]] = field(default_factory=list)
    """When streams were left: ns since 1970, monotonic ns."""
    wall_s: float = 0
    cpu_s: float = 0
    """Of the load itself."""
    error: str = ""
    """Why the job was given up."""

    def line(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of_line(cls, line: str) -> Outcome:
        """From JSON."""
        return cls(**json.loads(line))

    @classmethod
    def of(cls, answers: Iterable[Answered], *, tokens: int = 0) -> Outcome:
        """From answers that were all streamed, with so many tokens each; or all whole, if that is 0.

        Where a stream does not tell how many tokens it had, those that a worker sent as one piece count once.
        """
        answers, streamed = list(answers), bool(tokens)
        good = [one for one in answers if one.status == 200 and one.tokens >= MOST_OF_THEM * tokens]
        firsts = [one.first_ms for one in good]
        return cls(
            answers=len(good),
            failed=len(answers) - len(good),
            tokens=sum(one.tokens for one in good) if streamed else 0,
            reads=sum(len(one.reads) for one in good),
            whole_ms=[] if streamed else firsts,
            first_ms=firsts if streamed else [],
            gaps_ms=[gap for one in good for gap in one.gaps_ms] if streamed else [],
        )

    def with_others(self, others: Outcome) -> Outcome:
        """Both together."""
        return replace(
            self,
            answers=self.answers + others.answers,
            failed=self.failed + others.failed,
            tokens=self.tokens + others.tokens,
            reads=self.reads + others.reads,
            whole_ms=self.whole_ms + others.whole_ms,
            first_ms=self.first_ms + others.first_ms,
            gaps_ms=self.gaps_ms + others.gaps_ms,
        )


class Load(Protocol):
    """What does jobs."""

    async def run(self, job: Job) -> Outcome:
        """One job."""


async def do_jobs(load: Load) -> None:
    """Does the jobs of stdin, one after the other, to its end."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        job = Job.of_line(line)
        began, cpu = time.perf_counter(), time.process_time()
        try:
            async with asyncio.timeout(job.timeout_s):
                outcome = await load.run(job)
        except (OSError, TimeoutError) as error:
            outcome = Outcome(error=f"{type(error).__name__}: {error}")
        outcome = replace(outcome, wall_s=time.perf_counter() - began, cpu_s=time.process_time() - cpu)
        print(outcome.line(), flush=True)
