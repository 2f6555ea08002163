"""Hands the newest snapshot to everybody who looks. Nothing is made while nobody does, and nothing is queued."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from tandem.core.clock import Clock
from tandem.core.errors import ErrorReason, TandemError

_NEARLY: Final = 0.99
"""Of an interval: timers may wake a viewer a little early."""


class Feed:
    """Makes a snapshot where the last one is older than interval_s and somebody asks for one; all get the same."""

    def __init__(
        self, make: Callable[[], Awaitable[bytes]], clock: Clock, *, max_viewers: int, interval_s: float = 1.0
    ) -> None:
        self._make = make
        self._making = asyncio.Lock()
        self._clock = clock
        self._max_viewers = max_viewers
        self._interval_s = interval_s
        self._closed = asyncio.Event()
        self._made_at = float("-inf")
        self._newest = b""
        self.viewers = 0
        """Who looks now."""

    @contextmanager
    def place(self) -> Iterator[None]:
        """A viewer's place. Raises OVERLOADED if all are taken."""
        if self.viewers >= self._max_viewers:
            raise TandemError(
                ErrorReason.OVERLOADED, f"{self.viewers} others look at this dashboard, which is the most that may."
            )
        self.viewers += 1
        try:
            yield
        finally:
            self.viewers -= 1

    async def snapshots(self) -> AsyncIterator[bytes]:
        """A snapshot at once, then one per interval until `close`. Who is slow to take one misses those in between."""
        while not self._closed.is_set():
            yield await self._current()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._made_at + self._interval_s - self._clock.monotonic()):
                    await self._closed.wait()

    def close(self) -> None:
        """Ends what every viewer gets."""
        self._closed.set()

    async def _current(self) -> bytes:
        async with self._making:
            now = self._clock.monotonic()
            if now >= self._made_at + self._interval_s * _NEARLY:
                self._newest, self._made_at = await self._make(), now
            return self._newest
