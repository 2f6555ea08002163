"""What is compared: gateways, each before mock workers that speak its protocol, as real processes."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from tandem.cli import settings
from tandem.cli.bench_gateway.peer_venv import PLAIN, SGLANG_ROUTER, SMG, VLLM_ROUTER
from tandem.cli.board import read_state
from tandem.cli.child import Child
from tandem.cli.plan import LOOPBACK
from tandem.core.errors import ErrorReason, TandemError

TANDEM: Final = "tandem"
READY: Final = "Tandem is ready"
START_TIMEOUT_S: Final = 120.0
STOP_GRACE_MS: Final = 20_000
PROBE_S: Final = 0.1
HTTP_LOAD: Final = "tandem.cli.bench_gateway.http_load"
SESSION_LOAD: Final = "tandem.cli.bench_gateway.session_load"
HTTP_WORKER: Final = "tandem.cli.bench_gateway.http_worker"


@dataclass(frozen=True, slots=True)
class Engine:
    """What the mock workers pretend, whichever protocol they speak."""

    step_us: int = 1_000
    """Decode's time per step, of all streams together."""
    prefill_us: int = 0
    """Prefill's time per prompt."""
    prompt_tokens: int = 40
    """About what the gateway makes of the prompt: Tandem's mock has its time per token."""
    trace_all: bool = False
    """Tandem: sample every request rather than one of a hundred; the peers trace nothing."""


@dataclass(frozen=True, slots=True)
class Side:
    """One gateway that serves."""

    name: str
    address: str
    """host:port of its HTTP."""
    model: str
    gateway: int
    """Pid of the gateway."""
    others: tuple[int, ...]
    """Pids of what stands behind it."""
    without: tuple[str, ...]
    """Command of the load that asks its workers directly: a module and its arguments."""
    admin: str = ""
    """Tandem: host:port of AdminService."""
    workers: tuple[str, ...] = field(default=())
    """Peers: host:port of the mock workers, prefill's first."""


@asynccontextmanager
async def tandem_side(engine: Engine, env: Mapping[str, str]) -> AsyncIterator[Side]:
    """A whole system of Tandem with the mock engine. env: more settings."""
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        state_file = Path(folder, "state.json")
        command = [settings.python(), "-m", "tandem.cli", "up", "--engine", "mock", "--port", "0", "--quiet"]
        command += ["--model", settings.default_model(), "--state-file", str(state_file), "--log-dir", folder]
        mock = {
            "decode_us_per_step": engine.step_us,
            "decode_us_per_sequence": 0,
            "prefill_us_per_token": engine.prefill_us / engine.prompt_tokens,
            "chunk_tokens": 16,
            "max_running": 65_536,
            "max_waiting": 65_536,
            "metadata_rows": 16_384,
            "pages": 262_144,
            "head_bytes": 8,
            # It has no text, so that a client would see nothing for a step.
            "says_end": "false",
        }
        command += [word for key, value in mock.items() for word in ("--engine-arg", f"{key}={value}")]
        own = {
            "TANDEM_GATEWAY_MAX_CONCURRENT": "100000",
            "TANDEM_PREFILL_MAX_SUBMITS": "65536",
            "TANDEM_DECODE_MAX_SUBMITS": "65536",
            "TANDEM_TRACE_SAMPLE_RATIO": "1" if engine.trace_all else "0.01",
        }
        async with _running(command, {**settings.inherited(), **own, **env}, READY):
            state = read_state(state_file)
            pids = {row.name: row.pid for row in state.processes}
            gateway = pids.pop("gateway")
            yield Side(
                TANDEM,
                state.url.removeprefix("http://"),
                state.model,
                gateway,
                tuple(pids.values()),
                (SESSION_LOAD, state.bootstrap),
                state.admin,
            )


@asynccontextmanager
async def peer_side(name: str, engine: Engine, folder: Path) -> AsyncIterator[Side]:
    """A peer before a prefill and a decode worker of HTTP. folder: of the peers' virtual environment."""
    async with AsyncExitStack() as stack:
        workers = []
        for role in ("prefill", "decode"):
            command = [settings.python(), "-m", HTTP_WORKER, role]
            child = await stack.enter_async_context(_running(command, settings.inherited()))
            workers.append((child.pid, (await child.announced("worker"))["worker"]))
        (_, prefill), (_, decode) = workers
        await set_engine(prefill, engine.step_us, engine.prefill_us)
        await set_engine(decode, engine.step_us, engine.prefill_us)
        urls = [f"http://{address}" for address in (prefill, decode)]
        if name == PLAIN:
            command = [settings.python(), str(Path(__file__).with_name("plain_proxy.py")), *urls]
            child = await stack.enter_async_context(_running(command, settings.inherited()))
            address = (await child.announced("proxy"))["proxy"]
        else:
            port = _free_port()
            address = f"{LOOPBACK}:{port}"
            command = _peer_command(name, str(folder / "bin" / "python"), urls, port)
            child = await stack.enter_async_context(_running(command, settings.inherited()))
            await _until_it_serves(child, address)
        pids = tuple(pid for pid, _ in workers)
        yield Side(name, address, "mock", child.pid, pids, (HTTP_LOAD, decode), workers=(prefill, decode))


async def set_engine(address: str, step_us: int, first_us: int) -> None:
    """Sets the times of a mock worker of HTTP."""
    async with httpx.AsyncClient(trust_env=False) as client:
        (await client.get(f"http://{address}/bench/step/{step_us}/{first_us}")).raise_for_status()


async def closed_ns(address: str) -> list[int]:
    """When clients left a mock worker of HTTP, in monotonic ns, since it was asked last."""
    async with httpx.AsyncClient(trust_env=False) as client:
        found: list[int] = (await client.get(f"http://{address}/bench/closed")).json()
        return found


def _peer_command(name: str, python: str, urls: list[str], port: int) -> list[str]:
    modules = {SGLANG_ROUTER: "sglang_router", SMG: "smg", VLLM_ROUTER: "vllm_router"}
    pd = "--vllm-pd-disaggregation" if name == VLLM_ROUTER else "--pd-disaggregation"
    level = "warning" if name == VLLM_ROUTER else "warn"
    command = [python, "-m", f"{modules[name]}.launch_router", pd, "--prefill", urls[0], "--decode", urls[1]]
    command += ["--host", LOOPBACK, "--port", str(port), "--policy", "round_robin", "--log-level", level]
    # As many requests as the streams that are held, and no queue before them.
    return [*command, "--prometheus-port", str(_free_port()), "--max-concurrent-requests", "100000"]


async def _until_it_serves(child: Child, address: str) -> None:
    """Asks until an answer comes. Raises TandemError(ENGINE_FAILED) if none comes in time."""
    body = {"model": "mock", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    with suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT_S), httpx.AsyncClient(trust_env=False, timeout=5) as client:
            while True:
                with suppress(httpx.TransportError):
                    answer = await client.post(f"http://{address}/v1/chat/completions", json=body)
                    if answer.status_code == 200:
                        return
                await asyncio.sleep(PROBE_S)
    raise TandemError(ErrorReason.ENGINE_FAILED, f"{address} does not serve:\n" + "\n".join(child.tail))


@asynccontextmanager
async def _running(command: Sequence[str], env: Mapping[str, str], ready: str = "") -> AsyncIterator[Child]:
    """A child that runs, and has said what it is to say. Raises TandemError(ENGINE_FAILED) if it does not in time."""
    said = asyncio.Event()

    def listen(line: str) -> None:
        if ready in line:
            said.set()

    child = await Child.start(command, env, listen)
    try:
        if ready:
            waits = {asyncio.create_task(said.wait()), asyncio.create_task(child.wait())}
            await asyncio.wait(waits, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if not said.is_set():
                tail = "\n".join(child.tail)
                raise TandemError(ErrorReason.ENGINE_FAILED, f"{' '.join(command[1:4])} did not start:\n{tail}")
        yield child
    finally:
        await child.stop(STOP_GRACE_MS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
