"""Pools in a GPU's memory that network cards read and write there, by dma-bufs: nothing is copied, only waited for.

    prefill:  wait for what the GPU still computes --lane--> decode
    decode:   wait for what the GPU still computes, offer --lane--> pages, flush

The waiting is on a stream that was told, by `after`, which events to wait for. It is done by one thread; neither the
rank's loop nor the engine's scheduler waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.engine.rank.cuda import Cuda, CudaDevice
from tandem.engine.rank.pools import Pool
from tandem.engine.rank.staged import Copy, StagedLane
from tandem.engine.rank.staging import only_gpu, places_of
from tandem.rdma.api import U64, Buffer, DmaBuf, SenderLane

log = logging.getLogger(__name__)

NOTHING = np.empty((0, 3), np.uint64)
"""No copies."""


class GpuDirect:
    """The `Staging` of such pools. Buffers of the host, as SGLang's metadata rows are, are registered as such."""

    def __init__(self, pools: tuple[Pool, ...], cuda: Cuda) -> None:
        """Raises TandemError: NOT_SUPPORTED for pools on several GPUs or an old driver, TRANSFER_FAILED if the driver
        refuses."""
        places = places_of(pools, cuda)
        self.device = only_gpu(places)
        """Number of the GPU, in this process."""
        self._closed = False
        self._thread = ThreadPoolExecutor(1, "device-wait")
        with contextlib.ExitStack() as stack:
            stack.callback(self._thread.shutdown)
            self._gpu = self._thread.submit(CudaDevice, cuda, self.device).result()
            stack.callback(lambda: self._thread.submit(self._gpu.close).result())
            self._flushes = not self._thread.submit(self._gpu.sees_writes).result()
            if self._flushes:
                self._thread.submit(self._gpu.flush_writes).result()  # tells now whether it can be done at all
            self.pools = tuple(
                replace(pool, buffers=tuple(self._thread.submit(_shown, stack, cuda, pool, where).result()))
                for pool, where in zip(pools, places, strict=True)
            )
            """The pools as the endpoint knows them."""
            self._stack = stack.pop_all()

    def over(self, lane: SenderLane) -> SenderLane:
        """See `Staging.over`."""
        return StagedLane(lane, self)

    def download(self, offsets: U64, lengths: U64) -> tuple[Copy, asyncio.Future[None]]:
        """Nothing is copied: waits until the GPU has written what it is to read there. Raises DRAINING."""
        return Copy(NOTHING), self.writable()

    def writable(self) -> asyncio.Future[None]:
        """See `Staging.writable`."""
        self._require_open()
        return asyncio.get_running_loop().run_in_executor(self._thread, self._gpu.finish)

    async def upload(self, offsets: U64, lengths: U64) -> None:
        """See `Staging.upload`."""
        await self.settle()

    async def settle(self) -> None:
        """See `Staging.settle`: a card's completion is no proof that the GPU has its writes."""
        if self._flushes:
            self._require_open()
            await asyncio.get_running_loop().run_in_executor(self._thread, self._gpu.flush_writes)

    def after(self, event: int) -> None:
        """What is waited for from now on includes a recorded CUDA event. From any thread."""
        self._gpu.wait_for(event)

    async def close(self) -> None:
        """See `Staging.close`."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self.free)

    def free(self) -> None:
        """The same where no loop runs."""
        try:
            self._stack.close()
        except TandemError as error:
            log.warning("GPU %d was not let go in order: %s", self.device, error.message)

    def _require_open(self) -> None:
        if self._closed:
            raise TandemError(ErrorReason.DRAINING, "the rank is closing")


def _shown(stack: contextlib.ExitStack, cuda: Cuda, pool: Pool, where: Sequence[int | None]) -> list[Buffer]:
    """Thread: a pool's buffers with the dma-bufs that hold them, which end with the stack; those of the host as they
    are."""
    buffers = []
    for buffer, place in zip(pool.buffers, where, strict=True):
        if place is None:
            buffers.append(buffer)
            continue
        start = buffer.address & ~(mmap.PAGESIZE - 1)
        end = -(-(buffer.address + buffer.bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = cuda.export(start, end - start)
        stack.callback(os.close, fd)
        buffers.append(replace(buffer, dmabuf=DmaBuf(fd, buffer.address - start)))
    return buffers
