"""How fast KV pages move between two processes of this machine: `tandem bench kv`.

For each page size, the pages of a whole pool, in a random order on both sides, move over each provider, with checksums
off and on. In the same run, in turn with them, so that whatever else the machine does hits all alike:

- `memcpy`: one thread copies the pages of one pool to scattered places of another, with no Python between pages;
- `plain`: one TCP connection moves one contiguous buffer of the same total.

What is printed is the median and the best of the repeats, and their ratios to the ceiling that the provider is measured
by: `cma` by memcpy, `tcp` by the plain stream, `verbs` by perftest's ib_write_bw between the same two devices with
messages of a page. With `verbs` the time of a single page is printed too, beside that of C programs.
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

from tandem.core.errors import TandemError
from tandem.rdma.api import CmaProcess, Direction, Endpoint, ProviderOffer
from tandem.rdma.bench import perftest
from tandem.rdma.bench.pages import GRANT, PLAIN_STEP_BYTES, Pool, Way, make_pool, open_pool, scattered
from tandem.rdma.verbs import library as pyverbs

_CEILING = {"cma": "memcpy", "tcp": "plain", "verbs": "ib_write_bw"}
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


@dataclass(frozen=True, slots=True)
class Latency:
    """One line of the second table."""

    name: str
    page_bytes: int
    us: float
    """Median, until the sender knows that the page has arrived; of ib_write_lat its typical one-way time."""


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
        self._ends = perftest.Ends("", "")
        self._plain: socket.socket | None = None
        self._source = make_pool(pool.nbytes, 2)
        self._runs: list[tuple[str, bool]] = []

    async def open(self) -> None:
        """Opens every lane, and the plain stream."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._peer.tell(do="dial_plain", port=listener.getsockname()[1])
            self._plain = listener.accept()[0]
            await self._peer.answer()
        self._runs = [(name, False) for name in dict.fromkeys(_CEILING[one] for one in self._options.providers)]
        if "verbs" in self._options.providers:
            self._ends = perftest.Ends.of(self._options.devices or pyverbs.load().device_names())
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

    async def latencies(self, page_bytes: int) -> list[Latency]:
        """How long one page takes over verbs, beside the programs in C."""
        count = self._options.writes
        ours = await self._peer.ask(do="write_pages", page_bytes=page_bytes, count=count)
        return [
            Latency("ib_write_lat", page_bytes, await perftest.write_lat_us(self._ends, page_bytes, count)),
            Latency("waiting", page_bytes, await perftest.waiting_us(self._ends, page_bytes, count)),
            Latency("verbs", page_bytes, float(ours["median_us"])),
        ]

    async def _open_lane(self, provider: str, checksum: bool) -> None:
        sender, receiver = ([self._ends.sender], [self._ends.receiver]) if provider == "verbs" else ([], [])
        way = Way(provider, checksum, self._options.streams, tuple(receiver))
        endpoint = open_pool(self._pool, way, Direction.RECEIVE)
        await endpoint.start()
        self._endpoints.append(endpoint)
        offers = endpoint.offer()
        if not offers:
            print(f"{provider} is left out: this machine does not allow it", file=sys.stderr)
            return
        identity = offers[0].host_identity
        answer = await self._peer.ask(
            do="accept", provider=provider, checksum=checksum, host_identity=identity, devices=sender
        )
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
        if name == "ib_write_bw":
            speed = await perftest.write_bw_gb_per_s(self._ends, page_bytes, self._pool.nbytes)
            return self._pool.nbytes / speed / 1e9
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
    lines = [f"{'page':>8}  {'what':<11} {'checksum':<8} {'GB/s':>6} {'best':>6}  ratio (of best)"]
    for row in rows:
        size = f"{row.page_bytes >> 10} KiB"
        ratio = ""
        if row.ratio is not None and row.best_ratio is not None:
            ratio = f"{row.ratio:.2f} ({row.best_ratio:.2f}) of {_CEILING[row.name]}"
        speeds = f"{row.gb_per_s:>6.2f} {row.best_gb_per_s:>6.2f}"
        lines.append(f"{size:>8}  {row.name:<11} {'on' if row.checksum else '-':<8} {speeds}  {ratio}".rstrip())
    return "\n".join(lines)


def latency_table(rows: Sequence[Latency]) -> str:
    """The rows as text, with the ratio to the C program that waits as Tandem does."""
    waiting = {row.page_bytes: row.us for row in rows if row.name == "waiting"}
    lines = [f"{'page':>8}  {'what':<12} {'us':>8}  ratio"]
    for row in rows:
        ratio = f"{row.us / waiting[row.page_bytes]:.2f} of waiting" if row.name == "verbs" else ""
        lines.append(f"{row.page_bytes >> 10:>4} KiB  {row.name:<12} {row.us:>8.1f}  {ratio}".rstrip())
    return "\n".join(lines)


async def run(options: argparse.Namespace) -> tuple[list[Row], list[Latency]]:
    """Measures everything."""
    total_bytes = options.total_mib << 20
    pool = make_pool(total_bytes, 0)
    peer = await Peer.start(total_bytes, options.streams)
    bench = Bench(peer, pool, options)
    rows: list[Row] = []
    latencies: list[Latency] = []
    try:
        await bench.open()
        for page_bytes in options.page_bytes:
            rows += await bench.measure(page_bytes)
        if "verbs" in options.providers:
            latencies = await bench.latencies(options.page_bytes[0])
    finally:
        await bench.close()
        await peer.stop()
    return rows, latencies


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tandem bench kv", description="How fast KV pages move on this machine.")
    parser.add_argument("--providers", nargs="+", default=["cma", "tcp"], choices=sorted(_CEILING))
    parser.add_argument("--page-bytes", nargs="+", type=int, default=list(_PAGE_BYTES), help="page sizes, in bytes")
    parser.add_argument("--total-mib", type=int, default=256, help="bytes moved per run, in MiB (default 256)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each, in turn; the median counts (default 7)")
    parser.add_argument("--streams", type=int, default=1, help="connections of a tcp lane (default 1)")
    parser.add_argument(
        "--devices", nargs="+", metavar="NAME", help="verbs: the sender's device and the receiver's, or one for both"
    )
    parser.add_argument("--writes", type=int, default=200, help="verbs: single pages that are timed (default 200)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    if any(size < 1 or (options.total_mib << 20) % size for size in options.page_bytes) or options.repeats < 1:
        parser.error("--page-bytes must divide --total-mib, and --repeats be at least 1")
    try:
        rows, latencies = asyncio.run(run(options))
    except (RuntimeError, TandemError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([*map(asdict, rows), *map(asdict, latencies)], indent=2))
    else:
        print("\n\n".join([table(rows), *([latency_table(latencies)] if latencies else [])]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
