"""What a memory window per grant would cost: `python benchmarks/verbs_slabs.py`. Needs two verbs devices.

A window covers one range of addresses, so a room would need a contiguous slab, and a copy from there to its pages. For
rooms of several sizes, between two devices of this process, medians in us:

- direct: the pages are written where they belong, under the key of the whole pool, as the lanes do.
- bind: a window of type 2 over the slab, posted on the receiver's queue pair, until its completion.
- write: the same pages, to the slab, under the window's key.
- invalidate: the window is taken back, until its completion.
- copy: from the slab to the pages, with numpy, which copies page by page in C.

Completions are polled for. Before and after, each window is tried: a write has to land, then to be refused. For
comparison: how long a lane takes to revoke a grant under which nothing is under way.

`--copy-only` needs no device: the copies alone, each of another slab to other pages, so that no cache has them.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np

from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma.api import U64, Direction, VerbsSettings
from tandem.rdma.bench.pages import Pool, Way, make_pool, open_pool, scattered
from tandem.rdma.verbs import library as pyverbs
from tandem.rdma.verbs.chain import encode
from tandem.rdma.verbs.completions import poll
from tandem.rdma.verbs.control import QueuePairReady
from tandem.rdma.verbs.device import Device
from tandem.rdma.verbs.plan import Index
from tandem.rdma.verbs.queue_pair import QueuePair, QueueShape

SPREAD: Final = 4
"""The pool is so many times a room: its pages lie apart."""
REVOCATIONS: Final = 50
LANE_BYTES: Final = 1 << 16
COLD_BYTES: Final = 512 << 20
"""More than any cache has."""
STEPS: Final = ("direct", "bind", "write", "invalidate", "copy")
EXTRA: Final = ("bind", "invalidate", "copy")
"""What a slab takes beyond the write."""


@dataclass(frozen=True, slots=True)
class Room:
    """The pages of one grant."""

    pages: int
    page_bytes: int

    @property
    def bytes(self) -> int:
        """In all."""
        return self.pages * self.page_bytes

    def offsets(self) -> U64:
        """Where its pages lie in the pool [pages]."""
        return scattered(SPREAD * self.bytes, self.page_bytes, 1)[: self.pages]

    def index(self) -> Index:
        """Numbers of these pages [pages]."""
        return (self.offsets() // np.uint64(self.page_bytes)).astype(np.intp)


def copy_out(slab: Pool, pool: Pool, room: Room) -> Callable[[], None]:
    """What copies a slab to the room's pages."""
    rows, target, index = slab.reshape(-1, room.page_bytes), pool.reshape(-1, room.page_bytes), room.index()

    def copy() -> None:
        target[index] = rows

    return copy


def took_us(work: Callable[[], object]) -> float:
    """Runs something once; microseconds."""
    start = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start) / 1000


class Ends:
    """Both ends of one queue pair, and the memory of one room: a source, the pool, and a slab."""

    def __init__(self, devices: tuple[Device, Device], room: Room) -> None:
        self.room = room
        self.sender, self.receiver = devices
        self._apart = room.offsets()
        self._together = np.arange(room.pages, dtype=np.uint64) * np.uint64(room.page_bytes)
        self._library = library = self.sender.library
        self._windows: Any = importlib.import_module("pyverbs.mr")
        self.source = np.random.default_rng(1).integers(0, 256, room.bytes, np.uint8)
        self.pool, self.slab = make_pool(SPREAD * room.bytes, 0), make_pool(room.bytes, 0)
        local, remote = library.IBV_ACCESS_LOCAL_WRITE, library.IBV_ACCESS_REMOTE_WRITE
        self._regions = [
            library.MR(device.pd, memory.nbytes, access, address=memory.ctypes.data)
            for device, memory, access in (
                (self.sender, self.source, 0),
                (self.receiver, self.pool, local | remote),
                (self.receiver, self.slab, local | library.IBV_ACCESS_MW_BIND),  # no right but a window's
            )
        ]
        self._pairs = self._connect()

    def _connect(self) -> tuple[QueuePair, QueuePair]:
        ours = self.sender.queue_pair(QueueShape(512, 1, remote_write=False), lambda _: None)
        theirs = self.receiver.queue_pair(QueueShape(4, 1, remote_write=True), lambda _: None)
        for one, other, device in ((ours, theirs, self.receiver), (theirs, ours, self.sender)):
            one.connect(device.address, QueuePairReady(0, 1, other.number, other.psn))
        return ours, theirs

    def write(self, memory: Pool, offsets: U64, key: int) -> int:
        """Writes the source's pages to offsets of a memory; status of the last completion."""
        room, (ours, _), library = self.room, self._pairs, self._library
        batch = encode(
            library.codes,
            np.uint64(self.source.ctypes.data) + self._together,
            np.full(room.pages, room.page_bytes, np.uint32),
            np.full(room.pages, self._regions[0].lkey, np.uint32),
            np.uint64(memory.ctypes.data) + offsets,
            np.full(room.pages, key, np.uint32),
        )
        batch.signal(room.pages - 1, library.codes)
        ours.post(batch, 0, room.pages)
        return self._ended(self.sender)

    def write_direct(self) -> int:
        """As the lanes do."""
        return self.write(self.pool, self._apart, self._regions[1].rkey)

    def write_to_slab(self, key: int) -> int:
        """Under a window's key."""
        return self.write(self.slab, self._together, key)

    def window(self) -> Any:
        """A window that is not bound."""
        return self._windows.MW(self.receiver.pd, self._library.IBV_MW_TYPE_2)

    def bind(self, window: Any) -> int:
        """Binds it to the slab; its key."""
        library = self._library
        access = library.IBV_ACCESS_REMOTE_WRITE
        info = self._windows.MWBindInfo(self._regions[2], self.slab.ctypes.data, self.slab.nbytes, access)
        request = library.SendWR(opcode=library.IBV_WR_BIND_MW)
        request.set_bind_wr(window, info)
        self._post(request)
        return int(request.rkey)

    def invalidate(self, key: int) -> None:
        """Takes a window back."""
        request = self._library.SendWR(opcode=self._library.IBV_WR_LOCAL_INV)
        request.imm_data = key  # one field of the C structure has both
        self._post(request)

    def _post(self, request: Any) -> None:
        self._pairs[1]._qp.post_send(request)
        self._expect(self._ended(self.receiver))

    def _ended(self, device: Device) -> int:
        while not (found := poll(device.cq, 1)):
            pass
        return found[0].status

    def _expect(self, status: int) -> None:
        if status != self._library.IBV_WC_SUCCESS:
            raise RuntimeError(self._library.status_text(status))

    def steps(self) -> dict[str, float]:
        """One room, both ways: us of each step. Raises RuntimeError if anything fails, or bytes are missing."""
        took, key = {}, 0
        self.pool[:] = 0
        took["direct"] = took_us(lambda: self._expect(self.write_direct()))
        self._check()
        self.pool[:] = 0
        window = self.window()

        def bind() -> None:
            nonlocal key
            key = self.bind(window)

        took["bind"] = took_us(bind)
        took["write"] = took_us(lambda: self._expect(self.write_to_slab(key)))
        took["invalidate"] = took_us(lambda: self.invalidate(key))
        took["copy"] = took_us(copy_out(self.slab, self.pool, self.room))
        self._check()
        window.close()
        return took

    def _check(self) -> None:
        pages = self.pool.reshape(-1, self.room.page_bytes)[self.room.index()]
        if not np.array_equal(pages.ravel(), self.source):
            raise RuntimeError("the pages do not hold what was written")

    def refusal(self) -> str:
        """How a write under an invalidated window ends. It leaves the slab as it was, and the queue pair broken."""
        window = self.window()
        key = self.bind(window)
        self._expect(self.write_to_slab(key))
        self.invalidate(key)
        self.slab[:] = 0
        status = self.write_to_slab(key)
        if status == self._library.IBV_WC_SUCCESS or self.slab.any():
            raise RuntimeError("a write landed after its window was invalidated")
        window.close()
        return str(self._library.status_text(status))

    def close(self) -> None:
        """Frees everything but the devices."""
        for one in self._pairs:
            one.fail()
            one.close()
        for device in (self.sender, self.receiver):
            while poll(device.cq, 64):  # what was flushed is not the next room's
                pass
        for region in self._regions:
            region.close()


def measure(devices: tuple[Device, Device], room: Room, repeats: int) -> dict[str, float]:
    """Medians of each step in us."""
    ends = Ends(devices, room)
    try:
        ends.steps()  # warms up
        all_took = [ends.steps() for _ in range(repeats)]
        refused = ends.refusal()
    finally:
        ends.close()
    took = {step: median(each[step] for each in all_took) for step in STEPS}
    ratio = sum(took[step] for step in EXTRA) / took["direct"]
    shown = "".join(f"{took[step]:>12.0f}" for step in STEPS)
    print(f"{room.pages:>5} x {room.page_bytes >> 10:>3} KiB{shown}{ratio:>10.2f}   {refused}", flush=True)
    return took


async def revocation_us(names: tuple[str, ...]) -> float:
    """Median of what revoking a grant takes on a lane when its writes have ended."""
    pools = [make_pool(LANE_BYTES, 1) for _ in names]
    ends = [
        open_pool(pool, Way("verbs", checksum=False, streams=1, devices=(name,)), direction)
        for pool, name, direction in zip(pools, names, (Direction.SEND, Direction.RECEIVE), strict=True)
    ]
    for end in ends:
        await end.start()
    accepted = ends[0].accept(ends[1].offer(), lambda event: None)
    receiver = await ends[1].connect(accepted.answer, lambda event: None)
    start, whole, took = np.zeros(1, np.uint64), np.array([LANE_BYTES], np.uint64), []
    for number in map(GrantId, range(1, 1 + REVOCATIONS)):
        grant = receiver.grant(number, start, whole)
        await accepted.lane.write(start, start, whole, number, ChunkIndex(0)).wait()
        began = time.perf_counter_ns()
        await grant.revoke()
        took.append((time.perf_counter_ns() - began) / 1000)
    for end in reversed(ends):
        await end.close()
    return median(took)


def copies(rooms: list[Room], repeats: int) -> None:
    """The copies alone."""
    slabs, pool = make_pool(COLD_BYTES // SPREAD, 1), make_pool(COLD_BYTES, 0)
    for room in rooms:
        spread = SPREAD * room.bytes
        took = median(
            took_us(copy_out(slabs[at * room.bytes :][: room.bytes], pool[at * spread :][:spread], room))
            for at in np.random.default_rng(1).permutation(COLD_BYTES // spread)[:repeats].tolist()
        )
        print(f"{room.pages:>5} x {room.page_bytes >> 10:>3} KiB{took:>12.1f} us{room.bytes / took / 1000:>8.1f} GB/s")


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="What a memory window per grant would cost.")
    parser.add_argument("--pages", type=int, nargs="*", default=[1, 16, 256], help="pages of a room, at most 512")
    parser.add_argument("--page-bytes", type=int, nargs="*", default=[4096, 65536])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--devices", nargs=2, default=["rxe0", "rxe1"], help="the sender's, the receiver's")
    parser.add_argument("--copy-only", action="store_true", help="the copies alone")
    options = parser.parse_args()
    rooms = [Room(pages, page_bytes) for page_bytes in options.page_bytes for pages in options.pages]
    if options.copy_only:
        copies(rooms, options.repeats)
        return 0
    names = tuple(options.devices)
    print(f"{'room':>15}{''.join(f'{step:>12}' for step in STEPS)}{'extra':>10}   after the invalidate")
    devices = [Device(pyverbs.load(), name, VerbsSettings()) for name in names]
    for room in rooms:
        measure((devices[0], devices[1]), room, options.repeats)
    for device in devices:
        device.close()
    print("extra: bind, invalidate and copy, as a part of direct")
    print(f"revoking a grant on a lane: {asyncio.run(revocation_us(names)):.0f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
