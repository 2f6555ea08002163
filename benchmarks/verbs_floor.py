"""The least that one write costs in Python: `python benchmarks/verbs_floor.py`. Needs two verbs devices.

One page at a time from one device to another, both held by this process; medians in us, and as ratios to the first:

- waiting: a C program that posts a write, sleeps on the completion channel, and takes the completion.
- blocking: the same calls in Python, of a request that was laid out before. It stops the whole process while it waits.
- loop: that request, and its completion awaited on an event loop. Nothing is checked, cut, granted or announced.
- lane: `write()` of the provider `verbs`, to the end of `wait()`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from statistics import median

import numpy as np

from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma.api import Direction, VerbsSettings
from tandem.rdma.bench.pages import Way, make_pool, open_pool
from tandem.rdma.bench.perftest import Ends, waiting_us
from tandem.rdma.verbs import library as pyverbs
from tandem.rdma.verbs.chain import encode
from tandem.rdma.verbs.completions import Completion, poll
from tandem.rdma.verbs.control import QueuePairReady
from tandem.rdma.verbs.device import Device
from tandem.rdma.verbs.queue_pair import QueueShape


def since_us(began_ns: int) -> float:
    """Microseconds from then to now."""
    return (time.perf_counter_ns() - began_ns) / 1000


class Page:
    """A page at either end of one queue pair, and the request that writes it, laid out once."""

    def __init__(self, ends: Ends, page_bytes: int) -> None:
        self._library = library = pyverbs.load()
        self.sender, self.receiver = (Device(library, name, VerbsSettings()) for name in (ends.sender, ends.receiver))
        self._source, self._target = make_pool(page_bytes, 1), make_pool(page_bytes, 0)
        remote = library.IBV_ACCESS_LOCAL_WRITE | library.IBV_ACCESS_REMOTE_WRITE
        self._regions = [
            library.MR(self.sender.pd, page_bytes, 0, address=self._source.ctypes.data),
            library.MR(self.receiver.pd, page_bytes, remote, address=self._target.ctypes.data),
        ]
        self.ended: asyncio.Future[None] | None = None
        self._ours = self.sender.queue_pair(QueueShape(16, 1, remote_write=False), self._on_completion)
        self._theirs = self.receiver.queue_pair(QueueShape(1, 16, remote_write=True), lambda _: None)
        for one, other, device in (
            (self._ours, self._theirs, self.receiver),
            (self._theirs, self._ours, self.sender),
        ):
            one.connect(device.address, QueuePairReady(0, 1, other.number, other.psn))
        self._batch = encode(
            library.codes,
            np.array([self._source.ctypes.data], np.uint64),
            np.array([page_bytes], np.uint32),
            np.array([self._regions[0].lkey], np.uint32),
            np.array([self._target.ctypes.data], np.uint64),
            np.array([self._regions[1].rkey], np.uint32),
        )
        self._batch.signal(0, library.codes)

    def _on_completion(self, _: Completion) -> None:
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(None)

    def post(self) -> None:
        """Posts the write."""
        self._ours.post(self._batch, 0, 1)

    def wait(self) -> None:
        """Sleeps on the channel, and takes the completion. Raises RuntimeError if the write failed."""
        device = self.sender
        device.channel.get_cq_event(device.cq)
        device.cq.ack_events(1)
        device.cq.req_notify()
        while found := poll(device.cq, 1):
            if found[0].status != self._library.IBV_WC_SUCCESS:
                raise RuntimeError(self._library.status_text(found[0].status))

    def check(self) -> None:
        """Raises RuntimeError if the page did not arrive."""
        if not np.array_equal(self._source, self._target):
            raise RuntimeError("the page does not hold what was written")

    def close(self) -> None:
        """Frees everything."""
        for pair in (self._ours, self._theirs):
            pair.fail()
            pair.close()
        for region in self._regions:
            region.close()
        for device in (self.sender, self.receiver):
            device.close()


def blocking_us(page: Page, writes: int) -> float:
    """Without an event loop."""
    took = []
    page.sender.cq.req_notify()
    for _ in range(writes):
        began = time.perf_counter_ns()
        page.post()
        page.wait()
        took.append(since_us(began))
    page.check()
    return median(took)


async def loop_us(page: Page, writes: int) -> float:
    """On one."""
    took, loop = [], asyncio.get_running_loop()
    page.sender.start()
    for _ in range(writes):
        page.ended = loop.create_future()
        began = time.perf_counter_ns()
        page.post()
        await page.ended
        took.append(since_us(began))
    return median(took)


async def lane_us(ends: Ends, page_bytes: int, writes: int) -> float:
    """The provider's own, in this process too."""
    pools = [make_pool(page_bytes, 1), make_pool(page_bytes, 0)]
    made = [
        open_pool(pool, Way("verbs", checksum=False, streams=1, devices=(name,)), direction)
        for pool, name, direction in zip(
            pools, (ends.sender, ends.receiver), (Direction.SEND, Direction.RECEIVE), strict=True
        )
    ]
    for end in made:
        await end.start()
    accepted = made[0].accept(made[1].offer(), lambda event: None)
    receiver = await made[1].connect(accepted.answer, lambda event: None)
    start, whole, took = np.zeros(1, np.uint64), np.array([page_bytes], np.uint64), []
    receiver.grant(GrantId(1), start, whole)
    for chunk in range(writes):
        began = time.perf_counter_ns()
        await accepted.lane.write(start, start, whole, GrantId(1), ChunkIndex(chunk)).wait()
        took.append(since_us(began))
    for end in reversed(made):
        await end.close()
    return median(took)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="The least that one write costs in Python.")
    parser.add_argument("--devices", nargs=2, default=["rxe0", "rxe1"], help="the sender's, the receiver's")
    parser.add_argument("--page-bytes", type=int, default=4096)
    parser.add_argument("--writes", type=int, default=500)
    options = parser.parse_args()
    ends, bytes_, writes = Ends(*options.devices), options.page_bytes, options.writes
    took = {"waiting": asyncio.run(waiting_us(ends, bytes_, writes))}
    page = Page(ends, bytes_)
    took["blocking"] = blocking_us(page, writes)
    took["loop"] = asyncio.run(loop_us(page, writes))
    page.close()
    took["lane"] = asyncio.run(lane_us(ends, bytes_, writes))
    for name, us in took.items():
        print(f"{name:<10}{us:>10.1f} us{us / took['waiting']:>8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
