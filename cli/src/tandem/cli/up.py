"""`tandem up`: a whole system on this machine, from its plan to its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.cli.board import UP, Board, Stage
from tandem.cli.display import Display, LogFiles, make_display, welcome
from tandem.cli.plan import LOOPBACK, WORKERS, Kind, SystemPlan, in_role
from tandem.cli.services import Service
from tandem.cli.supervisor import ProcessFailed, Supervisor
from tandem.cli.switching import SERVICE_NAME, SystemServicer, switch_live
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role, can_serve
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import Credentials, TlsSettings
from tandem.rpc.exits import ExitCode
from tandem.rpc.server import GrpcServer
from tandem.v1 import system_pb2_grpc

BOOTSTRAP_DRAIN_MS: Final = 2_000
REWATCH_S: Final = 0.2
SAME_WISH_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class UpView:
    """How a running system is shown."""

    model: str
    """Name that clients use; of several, the first."""
    quiet: bool = False
    log_folder: Path | None = None
    state_file: Path | None = None


def require_free_port(port: int) -> None:
    """Raises INVALID_ARGUMENT if another process listens on the port already; 0 is always free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT,
                f"port {port} of {LOOPBACK} can't be used: {error.strerror}. Choose another with --port; 0 takes any.",
                field="port",
            ) from error


async def run_up(plan: SystemPlan, view: UpView, inherited: Mapping[str, str], drain_ms: int) -> int:
    """Runs a system until it is told to end, or can't go on. Returns the exit code of `tandem up`."""
    board = Board(plan.processes, view.model, view.state_file)
    display = make_display(board, quiet=view.quiet)
    board.watch(display.changed)
    files = LogFiles(view.log_folder, [row.name for row in board.rows]) if view.log_folder else None
    system = _System(plan, board, display, files, inherited, drain_ms)
    try:
        return await system.run()
    finally:
        display.close()
        board.forget()
        if files is not None:
            files.close()


class _System:
    """The processes of one system."""

    def __init__(
        self,
        plan: SystemPlan,
        board: Board,
        display: Display,
        files: LogFiles | None,
        inherited: Mapping[str, str],
        drain_ms: int,
    ) -> None:
        self._plan = plan
        self._board = board
        self._display = display
        self._files = files
        self._inherited = inherited
        self._credentials = Credentials.from_settings(TlsSettings.load())

        def supervise(index: int, drain: int = drain_ms) -> Supervisor:
            return Supervisor(plan.processes[index], board, self._line, drain_ms=drain)

        self._bootstrap = supervise(0, BOOTSTRAP_DRAIN_MS)
        self._workers = [supervise(1 + index) for index in range(len(plan.workers))]
        self._gateway = supervise(-1)
        self._server = GrpcServer(credentials=self._credentials)
        self._server.add(
            system_pb2_grpc.add_SystemServiceServicer_to_server, SystemServicer(self._switch), SERVICE_NAME
        )
        self._asked = asyncio.Event()
        self._asked_at = 0.0

    def _line(self, name: str, text: str) -> None:
        self._display.line(name, text)
        if self._files is not None:
            self._files.line(name, text)

    # ------------------------------------------------------------ life

    async def run(self) -> int:
        """Starts all, keeps all, stops all."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        self._board.up = self._server.bind(f"{LOOPBACK}:0")
        await self._server.start()
        asked = asyncio.ensure_future(self._asked.wait())
        living = asyncio.create_task(self._live())
        try:
            await asyncio.wait({asked, living}, return_when=asyncio.FIRST_COMPLETED)
            failure = _failure_of(living)
            if failure is not None:
                self._display.say(f"\n{failure}\n\nTandem ends.")
            await self._stop(living)
            return ExitCode.FAILED if failure is not None else ExitCode.OK
        finally:
            asked.cancel()
            for process in self._all:
                process.kill()

    def _on_signal(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._asked.is_set():
            # Some send their signal to the process and to its group, which is one wish.
            if now - self._asked_at < SAME_WISH_S:
                return
            self._display.say(f"{number.name} again: every process is killed.")
            for process in self._all:
                process.kill()
            return
        self._display.say(f"{number.name}: Tandem ends; requests that run may finish. Again: at once.")
        self._asked_at = now
        self._asked.set()

    @property
    def _all(self) -> list[Supervisor]:
        return [self._bootstrap, *self._workers, self._gateway]

    async def _live(self) -> None:
        """Starts every process and keeps it. Ends with the first failure that the system can't live with."""
        await self._start()
        keepers = {asyncio.create_task(process.keep()): process for process in self._all}
        ready = asyncio.create_task(self._watch_ready())
        try:
            while keepers:
                done, _ = await asyncio.wait({ready, *keepers}, return_when=asyncio.FIRST_COMPLETED)
                if ready in done:
                    ready.result()
                for keeper in done & keepers.keys():
                    process = keepers.pop(keeper)
                    failure = _failure_of(keeper)
                    if failure is None:
                        continue
                    if not self._spared(process.plan.kind):
                        raise failure
                    self._display.say(f"\n{failure}\n\nTandem goes on without {process.plan.name}.")
        finally:
            for task in (ready, *keepers):
                task.cancel()

    def _spared(self, kind: Kind) -> bool:
        """Whether the system serves without one of a kind."""
        left = [row.kind for row in self._board.rows if row.stage is not Stage.FAILED]
        return kind in WORKERS and can_serve(lambda role: [kind for kind in left if kind == role.value])

    async def _start(self) -> None:
        await self._bootstrap.start(self._inherited)
        env = dict(self._inherited)
        for kind in (*WORKERS, Kind.GATEWAY):
            env[f"TANDEM_{kind.name}_BOOTSTRAP_ADDRESS"] = self._bootstrap.address
        if self._plan.one_by_one:
            await self._start_gateway(env)
            for worker in self._workers:
                await worker.start(env)
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._start_gateway(env))
                for worker in self._workers:
                    group.create_task(worker.start(env))
        except* ProcessFailed as failed:
            raise failed.exceptions[0] from None

    async def _start_gateway(self, env: Mapping[str, str]) -> None:
        found = await self._gateway.start(env)
        self._board.admin, self._board.url = found["admin"], found["url"]

    async def _switch(self, name: str, kind: Kind, restart: bool) -> str:
        """Makes a worker one of a kind, or puts one in its place; returns its name. Raises TandemError."""
        process = next((one for one in self._workers if one.plan.name == name), None)
        if process is None:
            there = ", ".join(one.plan.name for one in self._workers)
            raise TandemError(
                ErrorReason.UNKNOWN_WORKER, f"there is no worker {name!r} in this system; there are {there}"
            )
        if process.plan.kind is kind:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{name} is a {kind.value} worker already", field="role")
        others = [row.kind for row in self._board.rows if row.stage in UP and row.name != name]
        if not can_serve(lambda role: [other for other in others if other == role.value]):
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"nobody would serve without {name}", field="worker_id")
        if not restart and await self._switched_live(process, kind):
            return name
        taken = {row.name for row in self._board.rows}
        free = next(f"{kind.value}-{number}" for number in count() if f"{kind.value}-{number}" not in taken)
        try:
            await process.become(in_role(process.plan, kind, free))
        except ProcessFailed as failed:
            raise TandemError(ErrorReason.INTERNAL, str(failed)) from failed
        return free

    async def _switched_live(self, process: Supervisor, kind: Kind) -> bool:
        """Whether a worker has taken the role while it runs: not all engines can. Raises TandemError."""
        plan = process.plan
        service = Service(plan.name, plan.kind.value, process.address)
        try:
            await switch_live(service, self._credentials, Role(kind.value), timeout_s=None)
        except TandemError as error:
            if error.reason is ErrorReason.NOT_SUPPORTED:
                return False
            raise
        process.took_role(in_role(plan, kind, plan.name))
        return True

    async def _stop(self, living: asyncio.Task[None]) -> None:
        """The gateway first, so that its requests end while there are workers; bootstrap last."""
        self._board.set_ready(False)
        await self._server.stop(0)
        for process in self._all:
            process.restart_no_more()
        await self._gateway.stop()
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        await self._bootstrap.stop()
        living.cancel()
        await asyncio.wait({living})

    # ------------------------------------------------------------ readiness

    async def _watch_ready(self) -> None:
        """Says when requests are served, and when they are not."""
        welcomed = False
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async with open_channel(self._board.admin, self._credentials) as channel:
                    stub: health_pb2_grpc.HealthAsyncStub = health_pb2_grpc.HealthStub(channel)
                    async for answer in stub.Watch(health_pb2.HealthCheckRequest(service="")):
                        ready = answer.status == health_pb2.HealthCheckResponse.SERVING
                        self._board.set_ready(ready)
                        if ready and not welcomed:
                            welcomed = True
                            self._display.say(welcome(self._board.state))
            self._board.set_ready(False)
            # The gateway is restarting: its AdminService comes back at another port.
            await asyncio.sleep(REWATCH_S)


def _failure_of(task: asyncio.Task[None]) -> ProcessFailed | None:
    """What a task ended with; None if it still runs, or just returned. Raises what is no ProcessFailed."""
    if not task.done() or task.cancelled():
        return None
    error = task.exception()
    if error is not None and not isinstance(error, ProcessFailed):
        raise error
    return error
