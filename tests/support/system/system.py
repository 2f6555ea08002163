"""A whole system of real processes, started by `tandem up`."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil

from tandem.cli.board import State, read_state
from tandem.cli.cluster import Member, members_of_bootstrap
from tandem.core.cluster import ClusterView
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import PLAIN
from tandem.rpc.watch import ClusterWatcher
from tandem.v1 import bootstrap_pb2, common_pb2, decode_pb2_grpc, prefill_pb2_grpc, session_pb2, unified_pb2_grpc
from tests.support.settings import environment

ROOT = Path(__file__).resolve().parents[3]
MODEL = ROOT / "models" / "tandem-tiny"
START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 60
IDLE_TIMEOUT_S = 20
READY = "Tandem is ready"


class System:
    """A running system. Make it with `running_system`."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.output: list[str] = []
        """Lines of `tandem up` so far."""
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)
        self.process.stdout.close()

    def wait_line(self, wanted: str, timeout_s: float) -> str:
        """Reads on until a line of `tandem up` holds a text; returns it. Fails if it ends before, or in time."""
        while True:
            try:
                line = self._lines.get(timeout=timeout_s)
            except queue.Empty:
                line = None
            if line is None:
                shown = "\n".join(self.output[-40:])
                raise AssertionError(f"`tandem up` did not say {wanted!r}; it said\n{shown}\n{self.logs()}")
            self.output.append(line)
            if wanted in line:
                return line

    def logs(self, lines: int = 15) -> str:
        """The last lines of each process."""
        return "\n".join(
            f"--- {path.stem}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            for path in sorted(self.folder.glob("logs/*.log"))
        )

    # ------------------------------------------------------------ what runs

    @property
    def state(self) -> State:
        """What `tandem up` says of itself now."""
        return read_state(self.folder / "state.json")

    @property
    def url(self) -> str:
        """Of the gateway."""
        return self.state.url

    def pid(self, name: str) -> int:
        """Of a process, by its name, e.g. "decode-0". Fails if it does not run: 0 would stand for our own group."""
        pid = self.state.row(name).pid
        assert pid > 0, f"{name} does not run"
        return pid

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends a signal to a process; returns its pid."""
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    def processes(self) -> dict[int, str]:
        """Every process of the system with its owner's name; children of a service have its name too."""
        named = {row.pid: row.name for row in self.state.processes if row.pid}
        found = {self.process.pid: "up"}
        for pid, name in named.items():
            try:
                found |= {one.pid: name for one in psutil.Process(pid).children(recursive=True)}
            except psutil.NoSuchProcess:
                continue
            found[pid] = name
        return found

    def client(self, timeout_s: float = 60) -> httpx.AsyncClient:
        """An HTTP client of the gateway, with as many connections as requests."""
        return httpx.AsyncClient(base_url=self.url, timeout=timeout_s, trust_env=False, limits=httpx.Limits())

    # ------------------------------------------------------------ workers

    async def members(self) -> dict[str, Member]:
        """Every registered worker with its status, by name."""
        found = await members_of_bootstrap(self.state.bootstrap, PLAIN)
        return {member.info.worker.worker_id: member for member in found}

    async def statuses(self) -> dict[str, session_pb2.WorkerStatus]:
        """The status of every registered worker that answers."""
        members = await self.members()
        return {name: member.status for name, member in members.items() if member.status is not None}

    async def wait_view(self, wanted: Callable[[ClusterView], bool], timeout_s: float = 30) -> ClusterView:
        """Follows bootstrap until its workers are as wanted."""
        import random

        async with open_channel(self.state.bootstrap) as channel:
            watcher = ClusterWatcher(channel, rng=random.Random(1))
            watcher.start()
            try:
                return await watcher.wait_for(wanted, int(timeout_s * 1000))
            finally:
                await watcher.close()

    async def busy_decode(self) -> str:
        """The decode worker that runs a request; waits for it."""

        async def running(name: str, member: Member) -> str:
            async for status in watch_status(member.info):
                if status.running:
                    return name
            raise AssertionError(f"{name} ended its status")

        members = {name: one for name, one in (await self.members()).items() if name.startswith("decode")}
        tasks = [asyncio.create_task(running(name, member)) for name, member in members.items()]
        done, rest = await asyncio.wait(tasks, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        return done.pop().result()

    async def wait_idle(self) -> dict[str, session_pb2.WorkerStatus]:
        """Follows every worker until it has nothing to do; returns their last statuses."""
        members = await self.members()
        async with asyncio.timeout(IDLE_TIMEOUT_S):
            found = await asyncio.gather(*(_wait_idle(member.info) for member in members.values()))
        return dict(zip(members, found, strict=True))

    # ------------------------------------------------------------ end

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it as a user would; returns the exit code of `tandem up`."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)


async def watch_status(info: bootstrap_pb2.WorkerInfo) -> AsyncIterator[session_pb2.WorkerStatus]:
    """A worker's status, whenever it changes."""
    stubs: dict[int, Any] = {
        common_pb2.ROLE_PREFILL: prefill_pb2_grpc.PrefillServiceStub,
        common_pb2.ROLE_DECODE: decode_pb2_grpc.DecodeServiceStub,
        common_pb2.ROLE_UNIFIED: unified_pb2_grpc.UnifiedServiceStub,
    }
    async with open_channel(info.address) as channel:
        async for answer in stubs[info.role](channel).WatchStatus(session_pb2.WatchStatusRequest(min_interval_ms=50)):
            yield answer.status


async def _wait_idle(info: bootstrap_pb2.WorkerInfo) -> session_pb2.WorkerStatus:
    last: session_pb2.WorkerStatus | None = None
    try:
        async for status in watch_status(info):
            last = status
            if is_idle(status):
                return status
    except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
        raise AssertionError(f"{info.worker.worker_id} did not become idle; at last it said\n{last}") from error
    raise AssertionError(f"{info.worker.worker_id} ended its status")


def is_idle(status: session_pb2.WorkerStatus) -> bool:
    """Whether nothing runs, waits or is granted, and every page and row is accounted for."""
    busy = status.running or status.waiting or status.open_rooms
    return not busy and all(
        pool.granted == 0 and pool.free + pool.evictable == pool.total for pool in status.pools if pool.total
    )


def command(folder: Path, *options: str) -> list[str]:
    """The command line of `tandem up` with a test's files."""
    files = ["--quiet", "--state-file", str(folder / "state.json"), "--log-dir", str(folder / "logs")]
    return [sys.executable, "-m", "tandem.cli", "up", "--model", str(MODEL), *files, *options]


def launch(folder: Path, *options: str, port: int = 0, env: Mapping[str, str] | None = None) -> System:
    """Starts `tandem up`; does not wait for anything."""
    process = subprocess.Popen(
        command(folder, "--port", str(port), *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**(env or {})),
        cwd=folder,
    )
    return System(process, folder)


@contextmanager
def running_system(
    folder: Path, *options: str, env: Mapping[str, str] | None = None, start_timeout_s: float = START_TIMEOUT_S
) -> Iterator[System]:
    """A system that is ready, with `tandem up`'s options; all of it is gone afterwards."""
    system = launch(folder, *options, env=env)
    try:
        system.wait_line(READY, start_timeout_s)
        yield system
    finally:
        try:
            system.stop()
        except subprocess.TimeoutExpired:
            system.process.kill()
            system.process.wait()
            raise
