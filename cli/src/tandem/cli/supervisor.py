"""Keeps one process of a system running: starts it, restarts it when it dies, and stops it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tandem.cli.board import Board, Stage
from tandem.cli.child import Child
from tandem.cli.plan import WORKERS, Kind, ProcessPlan
from tandem.cli.settings import python
from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.backoff import Backoff, BackoffPolicy

KILL_GRACE_MS: Final = 5_000
"""What a process may take to exit beyond the time in which it drains."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often to try again."""

    max_restarts: int = 5
    """In a row; one that has run for stable_s starts counting anew."""
    stable_s: float = 60.0
    backoff: BackoffPolicy = field(default_factory=lambda: BackoffPolicy(initial_ms=200, max_ms=5_000))


class ProcessFailed(Exception):
    """A process that will not be started again. The text says which, why, and its last lines."""

    def __init__(self, name: str, code: int, tail: list[str], *, again: str = "") -> None:
        ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        lines = "\n".join(f"  {name} | {line}" for line in tail) or "  (it logged nothing)"
        super().__init__(f"{name} {ended}{again}. Its last lines:\n{lines}")
        self.name = name


@dataclass(frozen=True, slots=True)
class _Successor:
    """What takes the place of a process that is to end."""

    plan: ProcessPlan
    listens: asyncio.Future[None]


class Supervisor:
    """One process. `start`, then `keep` until `stop`."""

    def __init__(
        self,
        plan: ProcessPlan,
        board: Board,
        on_line: Callable[[str, str], None],
        *,
        drain_ms: int,
        policy: RestartPolicy | None = None,
        command: Sequence[str] = (),
    ) -> None:
        """on_line: gets the name and each line of output. command: empty = the service that the plan names."""
        self.plan = plan
        self.address = ""
        """host:port of its service, once it listens."""
        self._board = board
        self._on_line = on_line
        self._drain_ms = drain_ms
        self._command = list(command)
        self._policy = policy or RestartPolicy()
        self._backoff = Backoff(self._policy.backoff, random.Random())
        self._inherited: Mapping[str, str] = {}
        self._env: dict[str, str] = {}
        self._child: Child | None = None
        self._serving = False
        self._successor: _Successor | None = None
        self._stopping = asyncio.Event()
        self._restarts = 0
        self._row_restarts = 0

    async def start(self, env: Mapping[str, str]) -> dict[str, str]:
        """Starts the process and waits until it listens; returns what it announced, address by name.

        Raises ProcessFailed if it ends before.
        """
        self._inherited, self._env = env, {**env, **self.plan.env}
        return await self._launch()

    async def keep(self) -> None:
        """Restarts the process whenever it dies; returns after `stop`. Raises ProcessFailed when it is enough."""
        while True:
            assert self._child is not None, "started before"
            born = time.monotonic()
            code = await self._child.wait()
            self._serving = False
            if self._stopping.is_set():
                return
            if self._successor is not None:
                if await self._succeeded(self._successor):
                    continue
                code = await self._child.wait()
            elif time.monotonic() - born > self._policy.stable_s:
                self._restarts = 0
                self._backoff.reset()
            while not await self._restarted(code):
                assert self._child is not None, "it was just launched"
                code = await self._child.wait()
                if self._stopping.is_set():
                    return

    async def become(self, plan: ProcessPlan) -> None:
        """Lets the process drain and end, and another take its place; returns once that one listens. Only while it is
        kept. Raises INVALID_ARGUMENT if it does not serve now, ProcessFailed if the other one does not start."""
        if not self._serving or self._successor is not None or self._stopping.is_set():
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{self.plan.name} does not serve now", field="worker_id")
        assert self._child is not None, "it serves"
        self._successor = successor = _Successor(plan, asyncio.get_running_loop().create_future())
        self._board.set(self.plan.name, stage=Stage.STOPPING, detail=f"{plan.name} takes its place")
        await self._child.stop(self._drain_ms + KILL_GRACE_MS)
        await successor.listens

    def took_role(self, plan: ProcessPlan) -> None:
        """The process has changed its role by itself: if it dies, it is started again in that one, by this plan."""
        self.plan, self._env = plan, {**self._inherited, **plan.env}
        self._board.set(plan.name, kind=plan.kind.value)

    async def _succeeded(self, successor: _Successor) -> bool:
        """The process has ended, and the one that takes its place is started; whether it listens."""
        self._successor = None
        self._board.replace(self.plan.name, successor.plan)
        self.plan, self._env = successor.plan, {**self._inherited, **successor.plan.env}
        self._restarts = self._row_restarts = 0
        try:
            await self._launch()
        except ProcessFailed as failed:
            if not successor.listens.done():
                successor.listens.set_exception(failed)
            return False
        if not successor.listens.done():
            successor.listens.set_result(None)
        return True

    async def _restarted(self, code: int) -> bool:
        """One restart; whether the process listens again. Raises ProcessFailed when it is enough."""
        assert self._child is not None, "started before"
        name, most = self.plan.name, self._policy.max_restarts
        if self._restarts >= most:
            self._board.set(name, stage=Stage.FAILED, pid=0, detail=f"{most} restarts were not enough")
            raise ProcessFailed(name, code, list(self._child.tail), again=f" after {most} restarts")
        self._restarts += 1
        self._row_restarts += 1
        detail = f"{_ended(code)}, restart {self._restarts} of {most}"
        self._board.set(name, stage=Stage.RESTARTING, pid=0, detail=detail, restarts=self._row_restarts)
        try:
            await asyncio.wait_for(self._stopping.wait(), self._backoff.next_ms() / 1000)
        except TimeoutError:
            pass
        else:
            return False
        try:
            await self._launch()
        except ProcessFailed:
            return False
        return True

    async def _launch(self) -> dict[str, str]:
        name = self.plan.name
        self._serving = False
        self._board.set(name, stage=Stage.STARTING, detail="")
        command = self._command or [python(), "-m", f"tandem.{self.plan.kind.value}"]
        self._child = child = await Child.start(command, self._env, self._line)
        self._board.set(name, pid=child.pid)
        if self._stopping.is_set():
            child.kill()
        wanted = _ANNOUNCED.get(self.plan.kind, (name,))
        found = await child.announced(*wanted)
        if len(found) < len(wanted):
            code = await child.wait()
            if not self._stopping.is_set() and not self._restarts:
                self._board.set(name, stage=Stage.FAILED, pid=0, detail=_ended(code))
            raise ProcessFailed(name, code, list(child.tail))
        self._serving = True
        self.address = found[wanted[0]]
        self._pin(found)
        # The gateway has its own on the port of its HTTP; the others name theirs before they name themselves.
        metrics = self.address if self.plan.kind is Kind.GATEWAY else child.heard("metrics")
        worker = self.plan.kind in WORKERS
        self._board.set(
            name, stage=Stage.REGISTERED if worker else Stage.LISTENING, address=self.address, metrics=metrics
        )
        return found

    def _pin(self, found: Mapping[str, str]) -> None:
        """Those whom others dial keep their ports over a restart."""
        if self.plan.kind in (Kind.BOOTSTRAP, Kind.GATEWAY):
            self._env[self.plan.prefixed("port")] = self.address.rpartition(":")[2]
        if "admin" in found:
            self._env[self.plan.prefixed("admin_address")] = found["admin"]

    def _line(self, text: str) -> None:
        if self._board.row(self.plan.name).stage is Stage.STARTING:
            self._board.set(self.plan.name, stage=Stage.LOADING)
        self._on_line(self.plan.name, text)

    def restart_no_more(self) -> None:
        """From now on its end is its end."""
        self._stopping.set()

    async def stop(self) -> None:
        """Lets the process drain, then ends it, with all that it started. Idempotent."""
        self.restart_no_more()
        if self._child is None or self._board.row(self.plan.name).stage in (Stage.STOPPED, Stage.FAILED):
            return
        self._board.set(self.plan.name, stage=Stage.STOPPING, detail="")
        # One that never served has nothing to drain, and may be busy for long with its start.
        grace_ms = self._drain_ms + KILL_GRACE_MS if self._serving else 0
        code = await self._child.stop(grace_ms)
        self._board.set(self.plan.name, stage=Stage.STOPPED, pid=0, detail="" if code == 0 else _ended(code))

    def kill(self) -> None:
        """Ends it at once."""
        self._stopping.set()
        if self._child is not None:
            self._child.kill()


_ANNOUNCED: Final = {Kind.BOOTSTRAP: ("bootstrap",), Kind.GATEWAY: ("gateway", "admin", "url")}
"""What each kind announces, its own service first; a worker announces its name."""


def _ended(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
