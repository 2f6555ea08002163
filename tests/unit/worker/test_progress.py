"""A worker whose engine is stuck leaves, and joins again when the engine answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.engine.worker.progress import MOST_TIMEOUTS, ProgressWatch, all_work, cpu_ticks

TIMEOUT_MS = 60


class Stage:
    """An engine that answers, hangs or refuses, and a membership that notes what is asked of it."""

    def __init__(self) -> None:
        self.hangs = False
        self.refuses = False
        self.asked = 0
        self.works: tuple[int, ...] = ()
        """Processes of ranks that use a processor."""
        self.ticks = 0
        self.notes: list[str] = []
        self._noted = asyncio.Event()

    async def ask(self) -> None:
        """The engine's status."""
        self.asked += 1
        self._noted.set()
        if self.refuses:
            raise TandemError(ErrorReason.DEADLINE_EXCEEDED, "a rank does not answer")
        if self.hangs:
            await asyncio.Event().wait()

    def used(self) -> dict[int, int]:
        """Two ranks, whose processes are looked at."""
        self.ticks += 1
        return {pid: self.ticks if pid in self.works else 7 for pid in (1, 2)}

    async def suspend(self) -> None:
        """As a LeaseKeeper's."""
        self._note("suspend")

    def resume(self) -> None:
        """As a LeaseKeeper's."""
        self._note("resume")

    def stuck(self, stuck: bool) -> None:
        """As the worker's."""
        self._note("stuck" if stuck else "well")

    def _note(self, what: str) -> None:
        self.notes.append(what)
        self._noted.set()

    async def until(self, *, notes: int = 0, asked: int = 0) -> list[str]:
        """The notes, once there are so many and the engine was asked so often."""
        async with asyncio.timeout(5):
            while len(self.notes) < notes or self.asked < asked:
                self._noted.clear()
                await self._noted.wait()
        return self.notes


@asynccontextmanager
async def watched() -> AsyncIterator[Stage]:
    """A stage whose engine is watched."""
    stage = Stage()
    watch = asyncio.create_task(ProgressWatch(stage.ask, stage, stage.stuck, TIMEOUT_MS, stage.used).run())
    try:
        yield stage
    finally:
        watch.cancel()


@pytest.mark.parametrize("how", ["hangs", "refuses"])
async def test_a_stuck_engine_takes_its_worker_out_until_it_answers(how: str) -> None:
    async with watched() as stage:
        setattr(stage, how, True)
        assert await stage.until(notes=2) == ["stuck", "suspend"]
        assert await stage.until(asked=stage.asked + 2) == ["stuck", "suspend"], "it is told once"
        setattr(stage, how, False)
        assert await stage.until(notes=4) == ["stuck", "suspend", "well", "resume"]


async def test_an_engine_that_answers_is_left_alone() -> None:
    async with watched() as stage:
        assert not await stage.until(asked=5)


async def test_an_engine_that_is_late_but_works_is_left_alone() -> None:
    async with watched() as stage:
        stage.works, stage.hangs = (1, 2), True
        began = asyncio.get_running_loop().time()
        await stage.until(asked=1)
        await asyncio.sleep(3 * TIMEOUT_MS / 1000)  # much longer than one that stands still is given
        assert not stage.notes
        assert await stage.until(notes=2) == ["stuck", "suspend"], "not for ever: it may run in a circle"
        assert asyncio.get_running_loop().time() - began >= MOST_TIMEOUTS * TIMEOUT_MS / 1000


async def test_one_rank_that_stands_still_is_enough() -> None:
    async with watched() as stage:
        stage.works, stage.hangs = (1,), True
        began = asyncio.get_running_loop().time()
        await stage.until(notes=2)
        assert asyncio.get_running_loop().time() - began < MOST_TIMEOUTS * TIMEOUT_MS / 1000


async def test_ticks_of_a_process_grow_as_it_works() -> None:
    me = os.getpid()
    before = cpu_ticks([me, 2**31 - 1])
    assert list(before) == [me], "the other is not there"
    async with asyncio.timeout(5):
        while not all_work(before, cpu_ticks([me])):
            sum(range(100_000))
            await asyncio.sleep(0)
