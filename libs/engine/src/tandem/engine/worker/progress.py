"""Notices an engine that is stuck, and keeps its worker out of the cluster until it answers again.

A worker's own process may be well while a rank of its engine is not: heartbeats go on, and the lease says nothing.

A rank that computes is not stuck, though it may be late with an answer where processors are few: its process uses a
processor. One that stands still does not. So a late answer is waited for as long as every rank works, to a limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from tandem.core.errors import TandemError

log = logging.getLogger(__name__)

ASKS_PER_TIMEOUT: Final = 3
MOST_TIMEOUTS: Final = 6
"""So many times the timeout a rank may work without an answer."""

CpuTicks = Mapping[int, int]
"""Clock ticks (a hundred in a second, on Linux) that each process has used of a processor so far, by pid."""


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
        used: Callable[[], CpuTicks] = dict,
    ) -> None:
        """stuck: told when the engine gets stuck, before the worker leaves, and when it answers, before it joins.
        used: of each process that has ranks; empty if they are in this one.
        """
        self._ask = ask
        self._membership = membership
        self._stuck = stuck
        self._timeout_s = timeout_ms / 1000
        self._used = used

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
        asking = asyncio.ensure_future(self._ask())
        try:
            for turn in range(1, 1 + ASKS_PER_TIMEOUT * MOST_TIMEOUTS):
                before = self._used()
                await asyncio.wait({asking}, timeout=self._timeout_s / ASKS_PER_TIMEOUT)
                if asking.done() and not isinstance(error := asking.exception(), TandemError):
                    asking.result()
                    return True
                late = asking.done() or turn >= ASKS_PER_TIMEOUT
                if late and not all_work(before, self._used()):
                    return False
                if asking.done():
                    log.debug("no status of the engine: %s", error)
                    asking = asyncio.ensure_future(self._ask())
            return False
        finally:
            asking.cancel()


def all_work(before: CpuTicks, after: CpuTicks) -> bool:
    """Whether each process has used a processor in between. False for none."""
    return bool(before) and all(after.get(pid, 0) > ticks for pid, ticks in before.items())


def cpu_ticks(pids: Sequence[int]) -> CpuTicks:
    """What each process has used; those that are gone are left out. Source: proc(5), utime and stime."""
    found = {}
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        found[pid] = int(fields[11]) + int(fields[12])
    return found
