"""News of one client request, from the Sessions that bring them to the one reader that writes them out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from tandem.core.errors import TandemError
from tandem.v1 import session_pb2


@dataclass(slots=True)  # not frozen, which would take three times as long: there is one for each token
class News:
    """What came for one sequence."""

    index: int
    """Sequence.index."""
    delta: session_pb2.Delta
    void: bool = False
    """Whether what came before of this sequence is void: it begins anew."""


def news_of(index: int, delta: session_pb2.Delta | None) -> News:
    """News of a sequence; None: what came before is void."""
    return News(index, session_pb2.Delta(), void=True) if delta is None else News(index, delta)


class Mailbox:
    """Bounded, for any number of writers and one reader, all on one loop. Writing never waits."""

    def __init__(self, max_tokens: int, on_full: Callable[[], None] = lambda: None) -> None:
        """max_tokens: tokens that may wait for the reader. on_full: is called once, when there would be more."""
        self._on_full: Callable[[], None] | None = on_full
        self._max_tokens = max_tokens
        self._waiting: list[News] = []
        self._tokens = 0
        self._error: TandemError | None = None
        self._closed = False
        self._reader: asyncio.Future[None] | None = None
        self._at_once: Callable[[News], bool] = lambda _: False

    def hand_over_at_once(self, to: Callable[[News], bool]) -> None:
        """From now on news that none wait before go to `to`, which returns False where they have to wait after all.

        It is called by the writer, without a switch to the reader's task, and must not raise.
        """
        self._at_once = to

    def put(self, index: int, delta: session_pb2.Delta | None) -> bool:
        """Leaves news for the reader, None: what came before is void. False if the reader is too far behind."""
        news = news_of(index, delta)
        reader = self._reader
        # A reader that was woken has not yet taken what came before.
        if reader is not None and not self._waiting and not reader.done() and self._at_once(news):
            return True
        tokens = len(news.delta.token_ids)
        if self._waiting and self._tokens + tokens > self._max_tokens:
            if self._on_full is not None:
                self._on_full()
                self._on_full = None
            return False
        self._waiting.append(news)
        self._tokens += tokens
        self._wake()
        return True

    def close(self, error: TandemError | None = None) -> None:
        """Nothing follows. The reader gets what waits, then the end or the error. The first close counts."""
        if not self._closed:
            self._closed = True
            self._error = error
            self._wake()

    async def take(self) -> list[News]:
        """Everything that waits; waits for something. Empty = the end. Raises the error that `close` was given."""
        if not self._waiting and not self._closed:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if self._waiting:
            taken, self._waiting, self._tokens = self._waiting, [], 0
            return taken
        if self._error is not None:
            raise self._error
        return []

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
