"""What posting one RDMA write costs on Python's side: `tandem bench post`.

A small C function stands for the device's driver: it walks the chain that it is given and copies what a driver would
put into its queue, 64 bytes for each request. It is compiled when the benchmark starts.

- `chain`: requests are filled in by numpy and handed to that function; what every release of pyverbs has in common.
- `batch`: the same through `BatchPoster`, that is with pyverbs' own object as the head of the chain, to a queue pair
  that does nothing. Where pyverbs is installed.
- `reference`: pyverbs' objects as its documentation uses them, one for each request. Where pyverbs is installed.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tandem.core.errors import TandemError
from tandem.rdma.bench.compiler import compile_c
from tandem.rdma.verbs import library as pyverbs
from tandem.rdma.verbs.chain import Chain, Codes, WriteBatch, encode
from tandem.rdma.verbs.posting import BatchPoster, Poster, ReferencePoster

_SIZES: Final = (1, 16, 64, 256, 512)
_GOAL_NS: Final = 15.0
_GOAL_FROM: Final = 256
_CODES: Final = Codes(write=0, write_with_imm=1, signalled=2)
_DRIVER: Final = r"""
#include <stdint.h>
#include <string.h>
struct piece { uint64_t address; uint32_t length, key; };
struct request {
    uint64_t id; struct request *next; struct piece *pieces; int count, opcode; unsigned flags; uint32_t imm;
    uint64_t remote; uint32_t key; char rest[72];
};
static struct { uint64_t words[8]; } queue[4096];
static unsigned tail;
int post(struct request *request) {
    int posted = 0;
    for (; request; request = request->next, posted++) {
        uint64_t *entry = queue[tail++ % 4096].words;
        entry[0] = (uint64_t)request->opcode << 32 | request->flags;
        entry[1] = request->imm;
        entry[2] = request->remote;
        entry[3] = request->key;
        memcpy(entry + 4, request->pieces, sizeof(struct piece));
        entry[6] = request->id;
    }
    return posted;
}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    path: str
    requests: int
    """In one chain."""
    ns_per_request: float
    """The fastest of the repeats: what else the machine does only adds."""


class _NoQueuePair:
    """Takes every request, and does nothing."""

    def post_send(self, request: object) -> None:
        """Stands for pyverbs' QP.post_send."""


def compile_driver(folder: Path) -> ctypes.CDLL:
    """The C function. Raises RuntimeError if there is no compiler."""
    source, target = folder / "driver.c", folder / "driver.so"
    source.write_text(_DRIVER, encoding="ascii")
    compile_c(source, target, "-shared", "-fPIC")
    driver = ctypes.CDLL(str(target))
    driver.post.argtypes = [ctypes.c_void_p]
    return driver


def some_batch(count: int) -> WriteBatch:
    """Writes of scattered pages; the last carries a tag."""
    steps = np.arange(count, dtype=np.uint64)
    keys = np.full(count, 0x1234, np.uint32)
    batch = encode(_CODES, steps << np.uint64(12), keys, keys, steps << np.uint64(13), keys)
    batch.tag(np.array([count - 1]), np.array([7], np.uint32), _CODES)
    return batch


def fastest_ns(call: Callable[[], object], repeats: int) -> float:
    """Nanoseconds of one call, the fastest of some repeats of some calls."""
    call()
    began = time.perf_counter_ns()
    call()
    calls = max(1, 2_000_000 // max(1, time.perf_counter_ns() - began))
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter_ns()
        for _ in range(calls):
            call()
        best = min(best, (time.perf_counter_ns() - began) / calls)
    return best


def posters() -> list[Poster]:
    """Those that need pyverbs; none, with the reason on stderr, where that is not installed."""
    try:
        library = pyverbs.load()
        nowhere = _NoQueuePair()
        return [BatchPoster(library, nowhere, max(_SIZES)), ReferencePoster(library, nowhere)]
    except TandemError as error:
        print(f"batch and reference are left out: {error.message}", file=sys.stderr)
        return []


def measure(driver: ctypes.CDLL, repeats: int) -> list[Row]:
    """Measures every path at every size."""
    rows = []
    chain = Chain(max(_SIZES))
    made = posters()
    for size in _SIZES:
        batch, hand_over = some_batch(size), functools.partial(driver.post, chain.address)
        handed = chain.post(hand_over, batch, 0, size, 1)
        if handed != size:
            raise RuntimeError(f"the driver saw {handed} of {size} requests")
        calls: Mapping[str, Callable[[], object]] = {
            "chain": functools.partial(chain.post, hand_over, batch, 0, size, 1)
        } | {poster.path: functools.partial(poster.post, batch, 0, size, 1) for poster in made}
        rows += [Row(path, size, fastest_ns(call, repeats) / size) for path, call in calls.items()]
    for poster in made:
        poster.close()
    return sorted(rows, key=lambda row: (row.path, row.requests))


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f"{'path':<10} {'requests':>8} {'ns each':>9}  goal"]
    for row in rows:
        goal = ""
        if row.path != "reference" and row.requests >= _GOAL_FROM:
            goal = f"{_GOAL_NS:.0f} ns {'reached' if row.ns_per_request <= _GOAL_NS else 'missed'}"
        lines.append(f"{row.path:<10} {row.requests:>8} {row.ns_per_request:>9.1f}  {goal}".rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tandem bench post", description="What posting one RDMA write costs.")
    parser.add_argument("--repeats", type=int, default=30, help="runs of each; the fastest counts (default 30)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows = measure(compile_driver(Path(folder)), options.repeats)
        except RuntimeError as error:
            parser.error(str(error))
    print(json.dumps([asdict(row) for row in rows], indent=2) if options.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
