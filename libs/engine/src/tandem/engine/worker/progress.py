"""Notices an engine that is stuck, and keeps its worker out of the cluster until it answers again.

A worker's own process may be well while a rank of its engine is not: heartbeats go on, and the lease says nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from tandem.core.errors import TandemError

log = logging.getLogger(__name__)

ASKS_PER_TIMEOUT: Final = 3


class Membership(Protocol):
    """The part of a LeaseKeeper that this uses."""

    async def suspend(self) -> None:
        """Leaves the cluster."""

    def resume(self) -> None:
        """Joins it again."""


class ProgressWatch:
    """Asks an engine for its status again and again; it needs every rank for the answer."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[object]],
        membership: Membership,
        stuck: Callable[[bool], None],
        timeout_ms: int,
    ) -> None:
        """stuck: told when the engine gets stuck, before the worker leaves, and when it answers, before it joins."""
        self._ask = ask
        self._membership = membership
        self._stuck = stuck
        self._timeout_s = timeout_ms / 1000

    async def run(self) -> None:
        """Watches until cancelled."""
        while True:
            await self._wait_until(answers=False)
            log.error("the engine has not answered for %.1f s: this worker leaves until it does", self._timeout_s)
            self._stuck(True)
            await self._membership.suspend()
            await self._wait_until(answers=True)
            log.info("the engine answers again: this worker joins")
            self._stuck(False)
            self._membership.resume()

    async def _wait_until(self, *, answers: bool) -> None:
        while True:
            if await self._answers() is answers:
                return
            await asyncio.sleep(self._timeout_s / ASKS_PER_TIMEOUT)

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._ask()
        except (TandemError, TimeoutError) as error:
            log.debug("no status of the engine: %s", error)
            return False
        return True
