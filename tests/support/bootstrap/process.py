"""Starts a real bootstrap process, or a real worker process, and ends only those that it started."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from tandem.rpc.client import open_channel
from tandem.v1 import bootstrap_pb2_grpc
from tests.support.settings import environment

ROOT = Path(__file__).resolve().parents[3]
START_TIMEOUT_S = 30


@dataclass(slots=True)
class Process:
    """A child that has announced itself."""

    child: asyncio.subprocess.Process
    address: str
    """Third word of its announcement: where it listens, or its incarnation."""

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal and returns the exit code; one that is gone already just returns it."""
        if self.child.returncode is None:
            self.child.send_signal(number)
        return await asyncio.wait_for(self.child.wait(), START_TIMEOUT_S)


async def _start(*arguments: str, **env: str) -> Process:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=environment(**env),
    )
    assert child.stdout is not None
    line = b"listening metrics"
    while line.startswith(b"listening metrics"):  # told before what the process is for
        line = await asyncio.wait_for(child.stdout.readline(), START_TIMEOUT_S)
    if not line.startswith(b"listening "):
        raise AssertionError(f"{arguments} did not start: exit code {await child.wait()}")
    return Process(child, line.split()[2].decode())


async def start_bootstrap(port: int = 0, lease_ttl_ms: int = 600, **settings: object) -> Process:
    """A bootstrap process on loopback; settings as TANDEM_BOOTSTRAP_* in lower case."""
    given = {"port": port, "lease_ttl_ms": lease_ttl_ms, "lease_grace_ms": 100, **settings}
    return await _start(
        "-m", "tandem.bootstrap", **{f"TANDEM_BOOTSTRAP_{key.upper()}": str(value) for key, value in given.items()}
    )


@asynccontextmanager
async def lease_holder(bootstrap: str, worker_id: str) -> AsyncIterator[Process]:
    """A process that keeps a lease and does nothing else; its `address` is its incarnation."""
    process = await _start("-m", "tests.support.bootstrap.lease_holder", bootstrap, worker_id)
    try:
        yield process
    finally:
        await process.end(signal.SIGKILL)


@asynccontextmanager
async def bootstrap(**settings: object) -> AsyncIterator[Process]:
    """A bootstrap process for one test."""
    process = await start_bootstrap(**settings)  # type: ignore[arg-type]
    try:
        yield process
    finally:
        await process.end()


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[tuple[grpc.aio.Channel, bootstrap_pb2_grpc.BootstrapServiceStub]]:
    """A channel and a stub."""
    async with open_channel(address) as channel:
        yield channel, bootstrap_pb2_grpc.BootstrapServiceStub(channel)
