"""Prompts that wait for an engine, and the batches that it makes of them. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tandem.cli.sim_serve.costs import EngineCosts, WorkerShape
from tandem.cli.sim_serve.jobs import Job


@dataclass(frozen=True, slots=True)
class Chunk:
    """Part of a prompt in a batch."""

    job: Job
    tokens: int
    last: bool


class PromptQueue:
    """First come, first served; a prompt longer than a batch is computed in several."""

    def __init__(self, costs: EngineCosts, shape: WorkerShape) -> None:
        """shape: most tokens and prompts of a batch."""
        self._costs = costs
        self._chunk_tokens = shape.chunk_tokens
        self._most = shape.batch_prompts or shape.chunk_tokens
        self._waiting: deque[Job] = deque()
        self._done = 0
        """Tokens of the first prompt that are computed."""
        self.tokens = 0
        """That wait to be computed."""

    def add(self, job: Job) -> None:
        """A prompt comes."""
        self._waiting.append(job)
        self.tokens += job.prompt_tokens - job.cached_tokens

    def __len__(self) -> int:
        return len(self._waiting)

    def next_batch(self) -> tuple[float, list[Chunk]]:
        """Takes what is computed next, and the seconds that it takes; nothing if nobody waits."""
        left, seconds, chunks = self._chunk_tokens, 0.0, list[Chunk]()
        while self._waiting and left and len(chunks) < self._most:
            job = self._waiting[0]
            before = job.cached_tokens + self._done
            tokens = min(left, job.prompt_tokens - before)
            seconds += self._costs.prompt_s(tokens, before)
            last = before + tokens == job.prompt_tokens
            chunks.append(Chunk(job, tokens, last))
            left -= tokens
            self._done = 0 if last else self._done + tokens
            if last:
                self._waiting.popleft()
        self.tokens -= sum(chunk.tokens for chunk in chunks)
        return self._costs.batch_s(seconds), chunks
