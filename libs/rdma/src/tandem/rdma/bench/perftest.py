"""The peers of `verbs` in the benchmark: perftest's programs, and a C program that waits as Tandem does.

- `ib_write_bw` writes messages of one size over one queue pair and polls for its completions.
- `ib_write_lat` bounces one message between two buffers, which both sides poll; it prints half of a round trip.
- `waiting` (the C program below) posts one write with a tag, sleeps on the completion channel and takes the completion:
  the least that a program can do that does not burn a processor. It holds both ends.

perftest's own way to wait (`-e`) is refused for writes by Debian's release, so its two programs have the advantage of
polling.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.api import VerbsSettings
from tandem.rdma.bench.compiler import compile_c
from tandem.rdma.verbs.device import choose_gid, read_gids

_TIMEOUT_S: Final = 300.0
_CALLS: Final = 60
"""perftest's server says nothing when it listens, so its client may come too early."""
_BETWEEN_CALLS_S: Final = 0.5
_END_TIMEOUT_S: Final = 10.0
_MOST_WRITES: Final = 20_000
_SOURCE: Final = Path(__file__).with_name("waiting.c")


@dataclass(frozen=True, slots=True)
class Ends:
    """The devices that data goes from and to."""

    sender: str
    receiver: str

    @classmethod
    def of(cls, names: list[str]) -> Ends:
        """The two devices that are named, or one twice. Raises TandemError(NOT_SUPPORTED) for none."""
        if not names:
            raise TandemError(ErrorReason.NOT_SUPPORTED, "this machine has no verbs device")
        return cls(names[0], names[-1])


def gid_index(device: str) -> int:
    """The GID that a lane would use too."""
    return choose_gid(read_gids(device, VerbsSettings().port)).index


async def write_bw_gb_per_s(ends: Ends, message_bytes: int, total_bytes: int) -> float:
    """What ib_write_bw says, in 1e9 bytes per second. Raises RuntimeError with what it says instead."""
    writes = min(_MOST_WRITES, max(8, total_bytes // message_bytes))
    said = await _both("ib_write_bw", ends, message_bytes, writes, "--report_gbits", "-t", str(min(128, writes)))
    return _numbers(said, message_bytes)[3] / 8


async def write_lat_us(ends: Ends, message_bytes: int, writes: int) -> float:
    """The typical latency that ib_write_lat says. Raises RuntimeError with what it says instead."""
    return _numbers(await _both("ib_write_lat", ends, message_bytes, writes), message_bytes)[4]


async def waiting_us(ends: Ends, message_bytes: int, writes: int) -> float:
    """Median time of the C program's writes. Raises RuntimeError if it can't be compiled or run."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "waiting"
        await asyncio.to_thread(compile_c, _SOURCE, program, "-libverbs", packages="gcc libibverbs-dev")
        where = [part for name in (ends.sender, ends.receiver) for part in (name, str(gid_index(name)))]
        said = await _run(str(program), *where, str(message_bytes), str(writes))
    return statistics.median(float(line) for line in said.split())


async def _both(program: str, ends: Ends, message_bytes: int, writes: int, *more: str) -> str:
    """Runs a program of perftest at both ends; returns what the client says."""
    if shutil.which(program) is None:
        raise RuntimeError(f"{program} is not installed (Debian: apt install perftest)")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    common = ["-s", str(message_bytes), "-n", str(writes), "-p", str(port), "-F", *more]

    def command(device: str, *peer: str) -> list[str]:
        return [program, "-d", device, "-x", str(gid_index(device)), *common, *peer]

    server = await asyncio.create_subprocess_exec(*command(ends.receiver), stdout=asyncio.subprocess.DEVNULL)
    client = command(ends.sender, "127.0.0.1")
    try:
        for _ in range(_CALLS - 1):
            try:
                return await _run(*client)
            except RuntimeError:
                if server.returncode is not None:
                    raise
                await asyncio.sleep(_BETWEEN_CALLS_S)
        return await _run(*client)
    finally:
        # It ends when its client has ended; one that was never called has to be ended.
        try:
            await asyncio.wait_for(server.wait(), _END_TIMEOUT_S)
        except TimeoutError:
            server.kill()
            await server.wait()


async def _run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await process.communicate()
    except BaseException:
        process.kill()
        raise
    said = output.decode()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said[-2000:]}")
    return said


def _numbers(said: str, message_bytes: int) -> list[float]:
    """The row of perftest's table for a size: bytes, iterations, and what the program measures."""
    row = re.search(rf"^ *{message_bytes} +\d+ +.*$", said, re.MULTILINE)
    if row is None:
        raise RuntimeError(f"no result for {message_bytes} bytes in: {said[-2000:]}")
    return [float(word) for word in row[0].split()]
