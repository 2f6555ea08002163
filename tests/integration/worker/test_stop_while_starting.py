"""A worker that is told to stop while its engine starts: it ends by itself, cleanly, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.engine.sglang.launch import Births
from tests.conftest import ROOT
from tests.support.settings import environment

STUCK = ROOT / "tests" / "support" / "stuck_sglang"
IMPORTING = r"importing SGLang"
LOADING = r"SGLang started process (\d+)"
WAIT_S = 120

pytestmark = pytest.mark.timeout(300)


class Worker:
    """A worker process, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def says(self, pattern: str) -> re.Match[str]:
        """Reads on until it says something."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while line := (await self.process.stdout.readline()).decode():
                self.said += line
                if found := re.search(pattern, line):
                    return found
        raise AssertionError(f"it did not say {pattern!r}, but\n{self.said}")

    async def stop(self) -> int:
        """Asks it once to stop; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        self.said += (await asyncio.wait_for(self.process.stdout.read(), WAIT_S)).decode()
        return await asyncio.wait_for(self.process.wait(), WAIT_S)


@contextlib.asynccontextmanager
async def worker(role: str, stand_in: Path | None) -> AsyncIterator[Worker]:
    """A worker with SGLang, or with what stands in for it."""
    paths = [str(stand_in or ""), environment().get("PYTHONPATH", "")]
    settings = {
        "PYTHONPATH": ":".join(filter(None, paths)),
        f"TANDEM_{role.upper()}_ENGINE": "sglang",
        f"TANDEM_{role.upper()}_MODEL_PATH": str(ROOT / "models" / "tandem-tiny"),
        "TANDEM_SGLANG_DEVICE": "cpu",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"tandem.{role}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment(**settings),
    )
    children: list[psutil.Process] = []
    try:
        yield Worker(process)
    finally:
        if process.returncode is None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            await process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_import_that_does_not_end_holds_nobody(role: str) -> None:
    async with worker(role, STUCK / "in_its_import") as one:
        await one.says(IMPORTING)
        assert await one.stop() == 0
        assert "stopped before it served: SIGTERM" in one.said
        assert "Traceback" not in one.said


async def test_processes_that_load_are_ended_and_no_other_is_started() -> None:
    async with worker("prefill", STUCK / "in_its_start") as one:
        child = psutil.Process(int((await one.says(LOADING))[1]))
        assert await one.stop() == 0
        assert not child.is_running()
        assert not re.search(LOADING, one.said.rpartition("SIGTERM: stop gracefully")[2])
        assert "stopped before it served: SIGTERM" in one.said
        assert "Traceback" not in one.said


@pytest.mark.sglang
@pytest.mark.slow
async def test_sglang_itself_is_left_while_it_is_imported() -> None:
    async with worker("decode", None) as one:
        await one.says(IMPORTING)
        assert await one.stop() == 0
        assert "stopped before it served: SIGTERM" in one.said
        assert not re.search(LOADING, one.said)
        assert "Traceback" not in one.said


@pytest.mark.sglang
@pytest.mark.slow
async def test_sglang_itself_is_ended_while_it_loads_its_model() -> None:
    async with worker("prefill", None) as one:
        children = [psutil.Process(int((await one.says(LOADING))[1])) for _ in ("scheduler", "detokenizer")]
        assert await one.stop() == 0
        assert not any(child.is_running() for child in children)
        assert "stopped before it served: SIGTERM" in one.said
        assert "Traceback" not in one.said


def test_nothing_is_started_after_the_end() -> None:
    births = Births()
    context = multiprocessing.get_context("spawn")
    with births.watched():
        first, second = (context.Process(target=signal.pause, daemon=True) for _ in range(2))
        first.start()
        births.end()
        assert first.exitcode == -signal.SIGKILL
        with pytest.raises(TandemError) as caught:
            second.start()
        assert caught.value.reason is ErrorReason.DRAINING
        assert second.pid is None
    third = context.Process(target=signal.pause, daemon=True)
    third.start()
    third.kill()
    third.join()
