"""Starts the processes of a gateway, starts anew what dies, and ends them all."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from tandem.rpc.backoff import Backoff, BackoffPolicy
from tandem.rpc.run import ANNOUNCEMENT

log = logging.getLogger(__name__)

KILL_GRACE_S: Final = 5.0
"""What a process may take to exit beyond the time in which it drains."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often to try again."""

    max_in_a_row: int = 5
    """While no process serves; one that does is a reason to go on trying."""
    stable_s: float = 60.0
    """Who has run for so long starts counting anew."""
    backoff: BackoffPolicy = field(default_factory=lambda: BackoffPolicy(initial_ms=200, max_ms=5_000))


class GaveUp(Exception):
    """No process will be started any more. `code`: what the last one ended with."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Supervisor:
    """`run`, until `stop`. On one event loop."""

    def __init__(
        self,
        count: int,
        command: Callable[[int, bool], Sequence[str]],
        *,
        drain_s: float,
        policy: RestartPolicy | None = None,
    ) -> None:
        """command: of a process, by its index and whether it replaces one that has ended.

        drain_s: what requests that run may take at the end.
        """
        self._count = count
        self._command = command
        self._grace_s = drain_s + KILL_GRACE_S
        self._policy = policy or RestartPolicy()
        self._running: dict[int, Process] = {}
        self._stopping = asyncio.Event()
        self._changed = asyncio.Condition()
        self.listening: frozenset[int] = frozenset()
        """Processes that serve HTTP."""
        self.started = asyncio.Event()
        """Set when all of them do, for the first time."""

    async def run(self) -> None:
        """Keeps all processes; returns after `stop`. Raises GaveUp, with some perhaps running still."""
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(self._count):
                    group.create_task(self._keep(index))
        except* GaveUp as failed:
            raise failed.exceptions[0] from None

    async def wait_listening(self, index: int) -> None:
        """Returns when a process serves."""
        async with self._changed:
            await self._changed.wait_for(lambda: index in self.listening)

    async def stop(self) -> None:
        """Lets all drain, at the same time, and kills who takes too long. Idempotent."""
        self._stopping.set()
        running = list(self._running.values())
        for process in running:
            assert process.stdin is not None, "it was asked for"
            process.stdin.close()
        if running:
            waits = [asyncio.create_task(process.wait()) for process in running]
            _, late = await asyncio.wait(waits, timeout=self._grace_s)
            if late:
                log.error("%d processes did not drain in time and are killed", len(late))
                self.kill()
                await asyncio.wait(late)

    def kill(self) -> None:
        """Ends all at once."""
        self._stopping.set()
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.kill()

    async def _keep(self, index: int) -> None:
        backoff, in_a_row, replaces = Backoff(self._policy.backoff, random.Random()), 0, False
        while not self._stopping.is_set():
            born = time.monotonic()
            code = await self._one_life(index, replaces)
            if self._stopping.is_set():
                return
            ended = f"process {index} {_ended(code)}"
            if not self.started.is_set():
                raise GaveUp(f"{ended} before it served", code)
            if time.monotonic() - born > self._policy.stable_s:
                in_a_row = 0
                backoff.reset()
            if in_a_row >= self._policy.max_in_a_row and not self.listening:
                raise GaveUp(f"{ended} after {in_a_row} restarts, and no other process serves", code)
            in_a_row, replaces, wait_ms = in_a_row + 1, True, backoff.next_ms()
            text = "%s; %d of %d serve; another starts in %d ms"
            log.error(text, ended, len(self.listening), self._count, wait_ms)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_ms / 1000)

    async def _one_life(self, index: int, replaces: bool) -> int:
        """Runs a process to its end; returns its exit code, minus the signal's number if one ended it."""
        process = await asyncio.create_subprocess_exec(*self._command(index, replaces), stdin=PIPE, stdout=PIPE)
        self._running[index] = process
        assert process.stdout is not None, "it was asked for"
        assert process.stdin is not None, "it was asked for"
        if self._stopping.is_set():
            process.stdin.close()
        try:
            async for line in process.stdout:
                if line.decode(errors="replace").startswith(f"{ANNOUNCEMENT} gateway "):
                    await self._set_listening(self.listening | {index})
            return await process.wait()
        finally:
            if self._running.get(index) is process and process.returncode is not None:
                del self._running[index]
            await self._set_listening(self.listening - {index})

    async def _set_listening(self, listening: frozenset[int]) -> None:
        async with self._changed:
            self.listening = listening
            self._changed.notify_all()
        if len(listening) == self._count and not self.started.is_set():
            log.info("all %d processes serve", self._count)
            self.started.set()


def _ended(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
