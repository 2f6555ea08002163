"""The two systems that are compared, started one after the other; both stay up to the end."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tandem.cli import settings
from tandem.cli.board import read_state
from tandem.cli.child import Child
from tandem.cli.plan import LOOPBACK
from tandem.core.errors import ErrorReason, TandemError

ENGINES: Final = ("sglang", "mock")
START_TIMEOUT_S: Final = 600.0
STOP_GRACE_MS: Final = 40_000
PD_READY: Final = "Tandem is ready"
PLAIN_READY: Final = "ready to roll"


@dataclass(frozen=True, slots=True)
class SideOptions:
    """What both sides have in common."""

    model: str
    threads: int
    """CPU threads of each rank."""
    max_total_tokens: int
    """Tokens in each KV pool."""
    provider: str = "auto"
    ratio: str = "1:1"
    env: Mapping[str, str] = field(default_factory=dict)
    """More settings of the disaggregated side."""
    engine: str = "sglang"
    """One of ENGINES."""
    engine_args: tuple[str, ...] = ()
    """key=value, for the engines of both sides."""
    plain_threads: int = 0
    """CPU threads of plain SGLang; 0: as many as each rank of the other side."""


@asynccontextmanager
async def disaggregated(options: SideOptions) -> AsyncIterator[str]:
    """A Tandem system on the CPU; yields host:port of its gateway."""
    async with _tandem(options, "--ratio", options.ratio, "--provider", options.provider) as address:
        yield address


@asynccontextmanager
async def plain(options: SideOptions) -> AsyncIterator[str]:
    """The engine un-disaggregated: SGLang's own server, or a unified worker with the mock; yields its host:port."""
    if options.engine == "mock":
        async with _tandem(options, "--ratio", "0:0", "--unified", "1") as address:
            yield address
        return
    port = free_port(20_000)
    async with running(plain_command(options, port), plain_environment(options), PLAIN_READY):
        yield f"{LOOPBACK}:{port}"


def plain_command(options: SideOptions, port: int) -> list[str]:
    """What starts SGLang's own server; it says PLAIN_READY."""
    command = [settings.python(), "-m", "sglang.launch_server", "--model-path", options.model, "--device", "cpu"]
    command += ["--max-total-tokens", str(options.max_total_tokens), "--max-running-requests", "16"]
    command += ["--host", LOOPBACK, "--port", str(port), "--sleep-on-idle", "--log-level", "info"]
    for one in options.engine_args:
        key, _, value = one.partition("=")
        command += [f"--{key.replace('_', '-')}", value]
    return command


@asynccontextmanager
async def _tandem(options: SideOptions, *workers: str) -> AsyncIterator[str]:
    """A system of `tandem up`; yields host:port of its gateway."""
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        state = Path(folder, "state.json")
        command = [settings.python(), "-m", "tandem.cli", "up", "--port", "0", "--state-file", str(state), *workers]
        command += ["--log-dir", folder, "--quiet", "--model", options.model, "--engine", options.engine]
        own = () if options.engine == "mock" else (f"max_total_tokens={options.max_total_tokens}",)
        command += [word for one in (*own, *options.engine_args) for word in ("--engine-arg", one)]
        command += [] if options.engine == "mock" else ["--device", "cpu"]
        env = {**settings.inherited(), "TANDEM_SGLANG_THREADS_PER_RANK": str(options.threads), **options.env}
        async with running(command, env, PD_READY):
            yield read_state(state).url.removeprefix("http://")


def plain_environment(options: SideOptions) -> dict[str, str]:
    """Of that server."""
    env = {
        **settings.inherited(),
        "SGLANG_USE_CPU_ENGINE": "1",
        "SGLANG_HOST_IP": LOOPBACK,
        "OMP_NUM_THREADS": str(options.plain_threads or options.threads),
        # Ours is not wanted here.
        "SGLANG_PLUGINS": "none",
    }
    if Path(options.model).exists():
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return env


@asynccontextmanager
async def running(command: Sequence[str], env: dict[str, str], ready: str) -> AsyncIterator[Child]:
    """A child that has said that it is ready, if it is to say something.

    Raises TandemError(ENGINE_FAILED) with its last lines if it does not.
    """
    said = asyncio.Event()

    def listen(line: str) -> None:
        if ready in line:
            said.set()

    child = await Child.start(command, env, listen)
    if not ready:
        said.set()
    waits = [asyncio.create_task(said.wait()), asyncio.create_task(child.wait())]
    try:
        await asyncio.wait(waits, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if not said.is_set():
            tail = "\n".join(child.tail)
            raise TandemError(ErrorReason.ENGINE_FAILED, f"{' '.join(command[1:4])} did not start:\n{tail}")
        yield child
    finally:
        for wait in waits:
            wait.cancel()
        await child.stop(STOP_GRACE_MS)


def free_port(first: int) -> int:
    """A port that is free now, from `first` on. SGLang derives others from it, so it is taken from below those that
    connections use."""
    for port in range(first, first + 3_000, 101):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise TandemError(ErrorReason.INVALID_ARGUMENT, "no free port for SGLang's server")
