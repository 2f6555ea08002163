"""How fast KV pages move between two processes of this machine: `tandem bench kv`.

For each page size, the pages of a whole pool, in a random order on both sides, move over each provider, with checksums
off and on. In the same run, in turn with them, so that whatever else the machine does hits all alike:

- `memcpy`: one thread copies the pages of one pool to scattered places of another, with no Python between pages;
- `plain`: one TCP connection moves one contiguous buffer of the same total.

What is printed is the median and the best of the repeats, and their ratios to the ceiling that the provider is measured
by: `cma` by memcpy, `tcp` by the plain stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tandem.rdma.api import CmaProcess, Endpoint, ProviderOffer
from tandem.rdma.bench.pages import GRANT, PLAIN_STEP_BYTES, Pool, make_pool, open_pool, scattered

_CEILING = {"cma": "memcpy", "tcp": "plain"}
_PAGE_BYTES = (4 << 10, 32 << 10, 128 << 10, 1 << 20)
_COMMAND_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    page_bytes: int
    name: str
    """Provider or ceiling."""
    checksum: bool
    gb_per_s: float
    """Median, 1e9 bytes per second."""
    ratio: float | None
    """To its ceiling, both as medians; None for a ceiling."""
    best_gb_per_s: float
    """The fastest repeat."""
    best_ratio: float | None
    """To its ceiling, both as their fastest repeats: the fairer one on a busy machine."""


class Peer:
    """The sending process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, total_bytes: int, streams: int) -> Peer:
        """Starts it and waits until it is ready."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tandem.rdma.bench.sender",
            str(total_bytes),
            str(streams),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        peer = cls(process)
        await peer.answer()
        return peer

    async def ask(self, **command: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer."""
        self.tell(**command)
        return await self.answer()

    def tell(self, **command: Any) -> None:
        """Sends a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")

    async def answer(self) -> dict[str, Any]:
        """Waits for an answer."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), _COMMAND_TIMEOUT_S)
        if not line:
            raise RuntimeError("the sending process ended; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def stop(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await asyncio.wait_for(self._process.wait(), _COMMAND_TIMEOUT_S)


class Bench:
    """The receiving side of the benchmark."""

    def __init__(self, peer: Peer, pool: Pool, options: argparse.Namespace) -> None:
        self._peer = peer
        self._pool = pool
        self._options = options
        self._endpoints: list[Endpoint] = []
        self._plain: socket.socket | None = None
        self._source = make_pool(pool.nbytes, 2)
        self._runs: list[tuple[str, bool]] = []

    async def open(self) -> None:
        """Opens every lane, and the plain stream."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._peer.tell(do="dial_plain", port=listener.getsockname()[1])
            self._plain = listener.accept()[0]
            await self._peer.answer()
        self._runs = [("memcpy", False), ("plain", False)]
        for checksum in (False, True):
            for provider in self._options.providers:
                await self._open_lane(provider, checksum)

    async def close(self) -> None:
        """Closes what `open` opened."""
        for endpoint in self._endpoints:
            await endpoint.close()
        if self._plain is not None:
            self._plain.close()

    async def measure(self, page_bytes: int) -> list[Row]:
        """Runs everything in turn, several times; the first round only warms up."""
        taken: dict[tuple[str, bool], list[float]] = defaultdict(list)
        for turn in range(self._options.repeats + 1):
            for run in self._runs:
                elapsed_s = await self._run(run, page_bytes)
                if turn:
                    taken[run].append(self._pool.nbytes / elapsed_s / 1e9)
        rows = []
        for name, checksum in self._runs:
            own, ceiling = taken[name, checksum], taken[_CEILING.get(name, name), False]
            median, best = statistics.median(own), max(own)
            ratio = median / statistics.median(ceiling) if name in _CEILING else None
            best_ratio = best / max(ceiling) if name in _CEILING else None
            rows.append(Row(page_bytes, name, checksum, median, ratio, best, best_ratio))
        return rows

    async def _open_lane(self, provider: str, checksum: bool) -> None:
        endpoint = open_pool(self._pool, provider, checksum, self._options.streams)
        await endpoint.start()
        self._endpoints.append(endpoint)
        offers = endpoint.offer()
        if not offers:
            print(f"{provider} is left out: this machine does not allow it", file=sys.stderr)
            return
        identity = offers[0].host_identity
        answer = await self._peer.ask(do="accept", provider=provider, checksum=checksum, host_identity=identity)
        shown = answer["cma"]
        lane = await endpoint.connect(
            ProviderOffer(
                name=provider,
                address=answer["address"],
                token=bytes.fromhex(answer["token"]),
                host_identity=identity,
                cma=CmaProcess(shown[0], shown[1], shown[2], bytes.fromhex(shown[3])) if shown else None,
            ),
            lambda event: None,
        )
        lane.grant(GRANT, np.zeros(1, np.uint64), np.array([self._pool.nbytes], np.uint64))
        self._runs.append((provider, checksum))

    async def _run(self, run: tuple[str, bool], page_bytes: int) -> float:
        name, checksum = run
        if name == "memcpy":
            return self._memcpy(page_bytes)
        if name == "plain":
            return await self._receive_plain()
        answer = await self._peer.ask(do="write", provider=name, checksum=checksum, page_bytes=page_bytes)
        return float(answer["elapsed_s"])

    def _memcpy(self, page_bytes: int) -> float:
        page = np.dtype((np.void, page_bytes))
        order = (scattered(self._pool.nbytes, page_bytes, 2) // np.uint64(page_bytes)).astype(np.intp)
        source, target = self._source.view(page), self._pool.view(page)
        began = time.perf_counter()
        np.put(target, order, source)
        return time.perf_counter() - began

    async def _receive_plain(self) -> float:
        assert self._plain is not None
        self._peer.tell(do="plain")
        await asyncio.sleep(0)  # lets the command go out
        view, at = self._pool.data, 0
        while at < len(view):
            at += self._plain.recv_into(view[at : at + PLAIN_STEP_BYTES])
        self._plain.send(b"\0")
        return float((await self._peer.answer())["elapsed_s"])


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f"{'page':>8}  {'what':<7} {'checksum':<8} {'GB/s':>6} {'best':>6}  ratio (of best)"]
    for row in rows:
        size = f"{row.page_bytes >> 10} KiB"
        ratio = ""
        if row.ratio is not None and row.best_ratio is not None:
            ratio = f"{row.ratio:.2f} ({row.best_ratio:.2f}) of {_CEILING[row.name]}"
        speeds = f"{row.gb_per_s:>6.2f} {row.best_gb_per_s:>6.2f}"
        lines.append(f"{size:>8}  {row.name:<7} {'on' if row.checksum else '-':<8} {speeds}  {ratio}".rstrip())
    return "\n".join(lines)


async def run(options: argparse.Namespace) -> list[Row]:
    """Measures everything."""
    total_bytes = options.total_mib << 20
    pool = make_pool(total_bytes, 0)
    peer = await Peer.start(total_bytes, options.streams)
    bench = Bench(peer, pool, options)
    rows: list[Row] = []
    try:
        await bench.open()
        for page_bytes in options.page_bytes:
            rows += await bench.measure(page_bytes)
    finally:
        await bench.close()
        await peer.stop()
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tandem bench kv", description="How fast KV pages move on this machine.")
    parser.add_argument("--providers", nargs="+", default=["cma", "tcp"], choices=sorted(_CEILING))
    parser.add_argument("--page-bytes", nargs="+", type=int, default=list(_PAGE_BYTES), help="page sizes, in bytes")
    parser.add_argument("--total-mib", type=int, default=256, help="bytes moved per run, in MiB (default 256)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each, in turn; the median counts (default 7)")
    parser.add_argument("--streams", type=int, default=1, help="connections of a tcp lane (default 1)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    if any(size < 1 or (options.total_mib << 20) % size for size in options.page_bytes) or options.repeats < 1:
        parser.error("--page-bytes must divide --total-mib, and --repeats be at least 1")
    rows = asyncio.run(run(options))
    print(json.dumps([asdict(row) for row in rows], indent=2) if options.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
