"""Whether RDMA writes leave anything behind: `python benchmarks/verbs_leaks.py`. Needs a verbs device.

Both ends are endpoints of this process, so what it holds is what both hold.

- Memory: a million work requests on each posting path; the resident size after the first fifth and at the end.
- Things: ten thousand transfers, each under a grant of its own that is revoked at its end, on lanes that are closed and
  opened anew a hundred times; file descriptors, and what the kernel holds for this process on each device (`rdma
  resource show`): queue pairs, memory regions, completion queues, protection domains.

Exit code 0: nothing grew.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma import Direction, Endpoint, EndpointSettings, SenderLane, TransferStatus, VerbsSettings, open_endpoint
from tandem.rdma.api import Buffer, ReceiverLane

POOL_BYTES: Final = 8 << 20
PIECES: Final = 1_000
"""Work requests of one write."""
PIECE_BYTES: Final = 64
LANES: Final = 100
GROWTH_BYTES: Final = 4 << 20
"""More than this is a leak. The heap itself comes and goes by a MiB or two; the least that malloc loses is 32 bytes."""
HELD: Final = ("qp", "mr", "cq", "pd")


@dataclass(frozen=True, slots=True)
class Pair:
    """Both ends, over pools of their own."""

    sender: Endpoint
    receiver: Endpoint

    async def lane(self) -> tuple[SenderLane, ReceiverLane]:
        """Another lane."""
        accepted = self.sender.accept(self.receiver.offer(), lambda event: None)
        return accepted.lane, await self.receiver.connect(accepted.answer, lambda event: None)


@asynccontextmanager
async def pair(posting: str, devices: tuple[str, ...]) -> AsyncIterator[Pair]:
    """Both ends; the receiver uses named devices in reverse, so that data goes from one to another if two are named."""
    pools = [np.ones(POOL_BYTES, np.uint8) for _ in range(2)]
    made = []
    for pool, direction, names in zip(
        pools, (Direction.SEND, Direction.RECEIVE), (devices, devices[::-1]), strict=True
    ):
        settings = EndpointSettings(
            providers=("verbs",), direction=direction, verbs=VerbsSettings(devices=names, posting=posting)
        )
        endpoint = open_endpoint([Buffer(int(pool.ctypes.data), pool.nbytes)], settings)
        await endpoint.start()
        made.append(endpoint)
    try:
        yield Pair(*made)
    finally:
        for endpoint in made:
            await endpoint.close()


async def write(lane: SenderLane, grant: GrantId, pieces: int) -> None:
    """One write of so many pieces, none of which touches another."""
    at = np.arange(pieces, dtype=np.uint64) * np.uint64(2 * PIECE_BYTES)
    result = await lane.write(at, at, np.full(pieces, PIECE_BYTES, np.uint64), grant, ChunkIndex(0)).wait()
    if result.status is not TransferStatus.DONE:
        raise result.error or RuntimeError(f"a write ended as {result.status.value}")


def resident_bytes() -> int:
    """Of this process, without what is garbage or free: neither is lost."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held() -> dict[str, int]:
    """What this process has open: file descriptors here, the rest as the kernel counts it."""
    found = {"fd": len(os.listdir("/proc/self/fd"))}
    for kind in HELD:
        shown = subprocess.run(["rdma", "-j", "resource", "show", kind], capture_output=True, check=True).stdout
        found[kind] = sum(one.get("pid") == os.getpid() for one in json.loads(shown or "[]"))
    return found


async def memory_growth(posting: str, requests: int, devices: tuple[str, ...]) -> int:
    """Bytes that this process grew by, after the first fifth of so many work requests."""
    async with pair(posting, devices) as both:
        sender, receiver = await both.lane()
        receiver.grant(GrantId(1), np.zeros(1, np.uint64), np.array([POOL_BYTES], np.uint64))
        writes = max(10, requests // PIECES)
        first = 0
        for number in range(writes):
            if number == writes // 5:
                first = resident_bytes()
            await write(sender, GrantId(1), PIECES)
        return resident_bytes() - first


async def left_behind(transfers: int, devices: tuple[str, ...]) -> dict[str, int]:
    """What is held more after so many transfers than before them, with both endpoints open."""
    async with pair("auto", devices) as both:
        before: dict[str, int] = {}
        for number in range(LANES + 1):
            sender, receiver = await both.lane()
            for grant in map(GrantId, range(1, 1 + max(1, transfers // LANES))):
                opened = receiver.grant(grant, np.zeros(1, np.uint64), np.array([POOL_BYTES], np.uint64))
                await write(sender, grant, 4)
                await opened.revoke()
            await receiver.close()
            await sender.close()
            if number == 0:
                before = held()  # after one lane: what is made once is there
        after = held()
    return {kind: after[kind] - count for kind, count in before.items() if after[kind] != count}


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Whether RDMA writes leave anything behind.")
    parser.add_argument("--requests", type=int, default=1_000_000, help="work requests on each posting path")
    parser.add_argument("--transfers", type=int, default=10_000, help="transfers, on lanes that come and go")
    parser.add_argument("--devices", nargs="*", default=[], help="verbs devices (default: all)")
    options = parser.parse_args()
    devices, good = tuple(options.devices), True
    for posting in ("batch", "reference"):
        grown = asyncio.run(memory_growth(posting, options.requests, devices))
        good &= grown <= GROWTH_BYTES
        print(f"{posting}: {options.requests} work requests, resident memory {grown >> 10:+d} KiB", flush=True)
    left = asyncio.run(left_behind(options.transfers, devices))
    print(f"{options.transfers} transfers, left behind: {left or 'nothing'}")
    return 0 if good and not left else 1


if __name__ == "__main__":
    sys.exit(main())
