"""Tells gateways what the engine's prefix cache holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.kv_log import KvLog
from tandem.rpc import held_pages
from tandem.v1 import session_pb2


class HeldPagesFeeds:
    """The streams that are open; each has its own pace, and what waits for it is bounded by KvLog."""

    def __init__(self, max_feeds: int) -> None:
        self._max_feeds = max_feeds
        self._open = 0

    async def follow(self, log: KvLog, over: asyncio.Event) -> AsyncIterator[session_pb2.HeldPagesChange]:
        """A snapshot, then what changes, until it is over. Raises OVERLOADED if too many are open."""
        if self._open >= self._max_feeds:
            raise TandemError(ErrorReason.OVERLOADED, f"{self._max_feeds} follow what is held already")
        self._open += 1
        news = asyncio.Event()
        ended = asyncio.ensure_future(over.wait())
        ended.add_done_callback(lambda _: news.set())
        try:
            with closing(log.follow(news.set)) as follower:
                while not over.is_set():
                    await news.wait()
                    news.clear()
                    while (change := follower.take(held_pages.PAGES_PER_MESSAGE)) is not None:
                        yield held_pages.to_proto(change)
        finally:
            ended.cancel()
            self._open -= 1
