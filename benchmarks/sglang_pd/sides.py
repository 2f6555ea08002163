"""What is compared: Tandem as `tandem up` starts it, and SGLang's own PD under the simplest supervisor."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TextIO

import httpx
import psutil

from benchmarks.sglang_pd.peer_venv import PLUGIN
from tandem.cli.child import Child
from tandem.cli.plan import LOOPBACK
from tandem.engine.sglang.architectures import unneeded_modules
from tests.support.settings import environment, python_path
from tests.support.system.system import MODEL, ROOT, System, running_system

PAIRS: Final = 2
"""Prefill workers of each side, and as many decode workers."""
MAX_TOTAL_TOKENS: Final = 32_768
START_TIMEOUT_S: Final = 240.0
READY_TRY_S: Final = 0.5
"""Between two looks whether the router serves: it tells nobody when it does."""
BASE_PORT: Final = 21_300
PORT_STEP: Final = 20
TANDEM: Final = "Tandem"
ROUTER_OPTIONS: Final = (
    *("--policy", "round_robin"),
    *("--health-check-interval-secs", "30", "--health-check-timeout-secs", "10"),
    *("--health-success-threshold", "2", "--health-failure-threshold", "3"),
    *("--cb-failure-threshold", "5", "--cb-success-threshold", "2"),
    *("--cb-timeout-duration-secs", "30", "--cb-window-duration-secs", "60"),
)
"""Health checks and circuit breakers as its documentation shows them; all of them notice more than the defaults."""


class Side(Protocol):
    """A running system."""

    @property
    def url(self) -> str:
        """Of its front."""

    def pid(self, worker: str) -> int:
        """Of the process that a worker is started as; its children belong to it."""

    def pids(self) -> Sequence[int]:
        """Of all that it was started as; their children belong to it."""

    async def answers(self) -> Mapping[str, int]:
        """How many requests each worker that is up has taken part in."""


def scheduler(pid: int) -> psutil.Process:
    """The scheduler process of a worker."""
    return next(one for one in psutil.Process(pid).children(recursive=True) if "sglang::scheduler" in _title(one))


def _title(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


class TandemSide:
    """`tandem up` with real SGLang."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.url = system.url

    def pid(self, worker: str) -> int:
        """Of the worker's process."""
        return self._system.pid(worker)

    def pids(self) -> Sequence[int]:
        """Of every service."""
        return [row.pid for row in self._system.state.processes if row.pid]

    async def answers(self) -> Mapping[str, int]:
        """Rooms that were submitted to each worker's engine."""
        return {name: status.submitted for name, status in (await self._system.statuses()).items()}


@asynccontextmanager
async def tandem(folder: Path, pairs: int = PAIRS) -> AsyncIterator[Side]:
    """So many prefill and as many decode workers, everything else by default."""
    options = ["--ratio", f"{pairs}:{pairs}", "--engine-arg", f"max_total_tokens={MAX_TOTAL_TOKENS}"]
    with running_system(folder, *options, env={"OMP_NUM_THREADS": "1"}, start_timeout_s=START_TIMEOUT_S) as system:
        yield TandemSide(system)


@dataclass(slots=True)
class Server:
    """One SGLang server: started again, by the same command, whenever it ends."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    log: TextIO
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    answered: int = 0
    """Requests to /generate that it has answered with 200, by its own log."""
    child: Child | None = None

    async def supervise(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self.child = await Child.start(self.command, self.env, self._hear)
                await self.child.wait()
                self.ready.clear()
                self._hear("--- ended; started again at once")
        finally:
            if self.child is not None:
                self.child.kill()

    def _hear(self, line: str) -> None:
        self.log.write(f"{line}\n")
        self.log.flush()
        if "ready to roll" in line:
            self.ready.set()
        if re.search(r'"POST /generate HTTP/[\d.]+" 200', line):
            self.answered += 1


class SglangSide:
    """SGLang's own PD behind its router."""

    def __init__(self, url: str, servers: Mapping[str, Server], router: Server) -> None:
        self.url = url
        self._servers = servers
        self._router = router

    def pid(self, worker: str) -> int:
        """Of its server."""
        child = self._servers[worker].child
        assert child is not None
        return child.pid

    def pids(self) -> Sequence[int]:
        """Of the router, then of each server."""
        return [one.child.pid for one in (self._router, *self._servers.values()) if one.child is not None]

    async def answers(self) -> Mapping[str, int]:
        """Requests that each server has answered that has started as far as that it says so."""
        return {name: server.answered for name, server in self._servers.items() if server.ready.is_set()}


def peer_environment(libraries: str) -> dict[str, str]:
    """Of every process of SGLang. libraries: a folder of shared libraries that its backends need, if any."""
    env = {
        "SGLANG_USE_CPU_ENGINE": "1",
        "SGLANG_HOST_IP": LOOPBACK,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "SGLANG_PLUGINS": PLUGIN,
        "PYTHONPATH": python_path(ROOT),
        # These two are what Tandem sets too, for a start and a first request that are not needlessly slow.
        "SGLANG_DISABLED_MODEL_ARCHS": ",".join(unneeded_modules(str(MODEL))),
        "TORCHDYNAMO_DISABLE": "1",
        # It would wait for a CUDA event.
        "SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX": "0",
    }
    return environment(**env, **({"LD_LIBRARY_PATH": libraries} if libraries else {}))


def server_command(python: str, backend: str, role: str, port: int) -> list[str]:
    """What starts a server of SGLang. Its bootstrap, if it is prefill, listens on the port after its own."""
    command = [python, "-m", "sglang.launch_server", "--model-path", str(MODEL), "--device", "cpu", "--host", LOOPBACK]
    command += ["--port", str(port), "--max-total-tokens", str(MAX_TOTAL_TOKENS), "--max-running-requests", "16"]
    command += ["--sleep-on-idle", "--disaggregation-mode", role, "--disaggregation-transfer-backend", backend]
    if role == "prefill":
        return [*command, "--disaggregation-bootstrap-port", str(port + 1)]
    return [*command, "--disaggregation-decode-retraction-backup", "cpu_tensor"]


@asynccontextmanager
async def sglang(
    folder: Path, backend: str, python: str, env: Mapping[str, str], pairs: int = PAIRS, base_port: int = BASE_PORT
) -> AsyncIterator[Side]:
    """The same shape of SGLang's own, each server under a supervisor, ready to answer. base_port: the lowest taken."""
    names = [f"{role}-{number}" for role in ("prefill", "decode") for number in range(pairs)]
    ports = {name: base_port + PORT_STEP * number for number, name in enumerate(names)}
    front = base_port + PORT_STEP * len(names)
    servers = {
        name: Server(
            name, server_command(python, backend, name.partition("-")[0], port), env, (folder / f"{name}.log").open("w")
        )
        for name, port in ports.items()
    }
    tasks = [asyncio.create_task(server.supervise()) for server in servers.values()]
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            for server in servers.values():
                await server.ready.wait()
        router = Server("router", router_command(python, ports, front), env, (folder / "router.log").open("w"))
        tasks.append(asyncio.create_task(router.supervise()))
        url = f"http://{LOOPBACK}:{front}"
        await wait_ready(url)
        yield SglangSide(url, servers, router)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def router_command(python: str, ports: Mapping[str, int], front: int) -> list[str]:
    """What starts SGLang's router in front of servers on these ports."""
    command = [python, "-m", "sglang_router.launch_router", "--pd-disaggregation", "--host", LOOPBACK]
    command += ["--port", str(front), "--prometheus-host", LOOPBACK, "--prometheus-port", str(front + 1)]
    for name, port in ports.items():
        url = f"http://{LOOPBACK}:{port}"
        command += ["--prefill", url, str(port + 1)] if name.startswith("prefill") else ["--decode", url]
    return [*command, *ROUTER_OPTIONS]


async def wait_ready(url: str) -> None:
    """Returns when the router there serves."""
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client, asyncio.timeout(START_TIMEOUT_S):
        while True:
            try:
                if (await client.get("/readiness")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(READY_TRY_S)
