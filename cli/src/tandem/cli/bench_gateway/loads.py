"""Loads as processes of their own, driven from here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from tandem.cli import settings
from tandem.cli.bench_gateway.jobs import Job, Outcome
from tandem.core.errors import ErrorReason, TandemError

LINE_LIMIT: Final = 1 << 28
STOP_S: Final = 10.0


class LoadProcess:
    """One load. Make it with `load_running`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def do(self, job: Job) -> Outcome:
        """Does a job. Raises TandemError if it was given up, or answers were no answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{job.line()}\n".encode())
        line = await self._process.stdout.readline()
        if not line:
            raise TandemError(ErrorReason.INTERNAL, "the load has ended; what it said is above")
        outcome = Outcome.of_line(line.decode())
        if outcome.error or outcome.failed:
            why = outcome.error or f"{outcome.failed} of {outcome.failed + outcome.answers} answers failed"
            raise TandemError(ErrorReason.INTERNAL, f"{job.kind.value}: {why}")
        return outcome


@asynccontextmanager
async def load_running(command: Sequence[str]) -> AsyncIterator[LoadProcess]:
    """A load that is ready for jobs. command: a module and its arguments."""
    process = await asyncio.create_subprocess_exec(
        settings.python(),
        "-m",
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=settings.inherited(),
        limit=LINE_LIMIT,
    )
    try:
        yield LoadProcess(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_S)
        if process.returncode is None:
            process.kill()
            await process.wait()
