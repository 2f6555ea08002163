"""KV pages that requests hold, and those that wait for some. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tandem.cli.sim_serve.jobs import Job


class Room:
    """KV of one worker: a request gets all that it may come to need, or waits for its turn."""

    def __init__(self, tokens: int, page_tokens: int = 1) -> None:
        """tokens: in all; what is no whole page is not used."""
        self.total = self.free = whole_pages(tokens, page_tokens)
        """Tokens of free pages."""
        self._page_tokens = page_tokens
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()

    def reserve(self, job: Job, then: Callable[[], None]) -> None:
        """Calls `then` once it has its own."""
        self._waiting.append((self.need(job), then))
        self._serve()

    def release(self, job: Job) -> None:
        """Its request is over."""
        self.free += self.need(job)
        self._serve()

    def need(self, job: Job) -> int:
        """Tokens of the pages that a request may come to need."""
        return whole_pages(job.prompt_tokens + job.ask.new_tokens + self._page_tokens - 1, self._page_tokens)

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.free:
            tokens, then = self._waiting.popleft()
            self.free -= tokens
            then()


def whole_pages(tokens: int, page_tokens: int) -> int:
    """Tokens of the whole pages among so many."""
    return tokens // page_tokens * page_tokens
