"""`tandem planner` as a process beside a system: quick, ended in order, and what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from tests.conftest import ROOT

QUICK: Final = {
    "TANDEM_PLANNER_INTERVAL_MS": "200",
    "TANDEM_PLANNER_SMOOTH_S": "0.5",
    "TANDEM_PLANNER_HOLD_S": "1",
    "TANDEM_PLANNER_REST_S": "1",
    "TANDEM_PLANNER_MOVE_S": "0",
}
"""So quick that it would change its mind every few seconds, if it could."""


@asynccontextmanager
async def planner_process(*command: str, env: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """What it and its command say comes from its stdout. It has to end well when it is asked to."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=dict(env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(60):
            assert process.stdout is not None
            said = (await process.stdout.read()).decode()
            assert await process.wait() == 0, said


async def line_with(process: asyncio.subprocess.Process, wanted: str) -> str:
    """The next line that has it. Fails with all that was said before."""
    assert process.stdout is not None
    said = []
    async with asyncio.timeout(120):
        while line := (await process.stdout.readline()).decode():
            said.append(line)
            if wanted in line:
                return line.strip()
    raise AssertionError(f"it ended without {wanted!r}:\n{''.join(said)}")
