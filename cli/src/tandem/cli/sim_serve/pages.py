"""KV that requests hold, and those that wait for some. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tandem.cli.sim_serve.jobs import Job


class Room:
    """Tokens of KV: a request gets all that it may come to need, or waits for its turn."""

    def __init__(self, tokens: int) -> None:
        """tokens: in all."""
        self._free = tokens
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()

    def reserve(self, job: Job, then: Callable[[], None]) -> None:
        """Calls `then` once it has its own."""
        self._waiting.append((need(job), then))
        self._serve()

    def release(self, job: Job) -> None:
        """Its request is over."""
        self._free += need(job)
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            tokens, then = self._waiting.popleft()
            self._free -= tokens
            then()


def need(job: Job) -> int:
    """Tokens of KV that a request may come to need."""
    return job.prompt_tokens + job.ask.new_tokens
