"""How often those who watch a cluster are told, and how many there may be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from tandem.core.errors import ErrorReason, TandemError

MAX_WATCHERS: Final = 16
INTERVAL_MS: Final = 1_000
MIN_INTERVAL_MS: Final = 200
MAX_INTERVAL_MS: Final = 60_000


class Watchers:
    """Those who watch one gateway."""

    def __init__(self) -> None:
        self._watching = 0

    async def paced(self, interval_ms: int) -> AsyncGenerator[int, None]:
        """Yields monotonic milliseconds, each time that one of them is to be told, without end.

        interval_ms: as asked for; 0 = INTERVAL_MS. Raises INVALID_ARGUMENT for one that is not allowed, OVERLOADED
        for one watcher too many.
        """
        pause_s = _interval_s(interval_ms)
        if self._watching >= MAX_WATCHERS:
            raise TandemError(ErrorReason.OVERLOADED, f"{MAX_WATCHERS} watchers follow this gateway already")
        self._watching += 1
        try:
            loop = asyncio.get_running_loop()
            due = loop.time()
            while True:
                yield int(loop.time() * 1000)
                # A watcher that reads slowly misses messages; it gets no burst of old ones.
                due = max(due + pause_s, loop.time())
                await asyncio.sleep(due - loop.time())
        finally:
            self._watching -= 1


def _interval_s(interval_ms: int) -> float:
    if interval_ms and not MIN_INTERVAL_MS <= interval_ms <= MAX_INTERVAL_MS:
        text = f"interval_ms is {interval_ms}, allowed: {MIN_INTERVAL_MS}..{MAX_INTERVAL_MS}, or 0 for {INTERVAL_MS}"
        raise TandemError(ErrorReason.INVALID_ARGUMENT, text, field="interval_ms")
    return (interval_ms or INTERVAL_MS) / 1000
