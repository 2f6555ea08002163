"""Pools in a GPU's memory, and their mirror in pinned host memory, of the same layout.

    prefill:  device page --download--> its mirror --lane--> the mirror of a decode page --upload--> device page

An entry's place in the mirror lives as long as the entry: whoever may touch the page may touch its mirror, so grants,
offsets and checks are those of pools in host memory. Copies are queued on a stream of their own by one thread, which
waits for them too; neither the rank's loop nor the engine's scheduler ever does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.engine.rank.cuda import Cuda, CudaDevice
from tandem.engine.rank.pools import Pool
from tandem.engine.rank.staged import Copy, StagedLane
from tandem.engine.rank.staging import Places, only_gpu, places_of
from tandem.rdma.api import U64, Buffer, SenderLane

log = logging.getLogger(__name__)

COPIES_PER_WAIT: Final = 256
"""Copies that are queued before the thread waits for them: bounds the stream, and how long an abort waits."""
MAX_WAITING: Final = 4096
"""Most downloads and uploads that are under way or wait; more are refused with OVERLOADED."""


class Mirror:
    """The `Staging` of pools in a GPU. Buffers of the host, as SGLang's metadata rows are, stand for themselves."""

    def __init__(self, pools: tuple[Pool, ...], cuda: Cuda, max_bytes: int = 0) -> None:
        """Pins the mirror, which takes seconds for many GiB. max_bytes: of the mirror; 0 = no limit.

        Raises TandemError: INVALID_ARGUMENT for a mirror over the limit, NOT_SUPPORTED for pools on several GPUs,
        ENGINE_FAILED for want of host memory, TRANSFER_FAILED if the driver refuses.
        """
        places = places_of(pools, cuda)
        self.device = only_gpu(places)
        """Number of the GPU, in this process."""
        sizes = [_device_bytes(pool, where) for pool, where in zip(pools, places, strict=True)]
        self.bytes = sum(sizes)
        """Bytes that are pinned."""
        if max_bytes and self.bytes > max_bytes:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT,
                f"the pools on the GPU need a pinned mirror of {self.bytes} bytes, TANDEM_RANK_STAGING_MAX_BYTES "
                f"allows {max_bytes}: raise it, or give the engine a smaller pool",
                field="staging_max_bytes",
            )
        self._waiting = 0
        self._closed = False
        self._thread = ThreadPoolExecutor(1, "device-copy")
        try:
            self._gpu, regions, self._stack = self._thread.submit(_open, cuda, self.device, sizes).result()
        except TandemError:
            self._thread.shutdown()
            raise
        self.pools = tuple(
            _mirrored(pool, where, base) for pool, where, base in zip(pools, places, regions, strict=True)
        )
        """The pools as the endpoint knows them."""
        self._set_map(pools, places)

    def _set_map(self, pools: tuple[Pool, ...], places: Places) -> None:
        ours = [buffer for pool in self.pools for buffer in pool.buffers]
        theirs = [buffer for pool in pools for buffer in pool.buffers]
        self._ends = np.cumsum([buffer.bytes for buffer in ours], dtype=np.uint64)
        self._starts = np.concatenate((np.zeros(1, np.uint64), self._ends[:-1]))
        self._host = np.array([buffer.address for buffer in ours], np.uint64)
        self._device = np.array([buffer.address for buffer in theirs], np.uint64)
        self._staged = np.array([place is not None for pool in places for place in pool])

    # ------------------------------------------------------------ Staging

    def over(self, lane: SenderLane) -> SenderLane:
        """See `Staging.over`."""
        return StagedLane(lane, self)

    def writable(self) -> None:
        """At once: what lands, lands in the mirror."""

    async def upload(self, offsets: U64, lengths: U64) -> None:
        """See `Staging.upload`."""
        await self._start(self._gpu.queue_uploads, Copy(self.rows(offsets, lengths)))

    async def settle(self) -> None:
        """Nothing: an aborted room is not uploaded."""

    def download(self, offsets: U64, lengths: U64) -> tuple[Copy, asyncio.Future[None]]:
        """Copies ranges of the device to the mirror: the copy, and its end. The end raises TandemError if it failed.

        Raises TandemError at once: INVALID_ARGUMENT as `rows` does, OVERLOADED for too many.
        """
        copy = Copy(self.rows(offsets, lengths))
        return copy, self._start(self._gpu.queue_downloads, copy)

    def after(self, event: int) -> None:
        """Copies that are asked for from now on wait, on the GPU, for a recorded CUDA event. From any thread."""
        self._gpu.wait_for(event)

    async def close(self) -> None:
        """See `Staging.close`."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._free)

    # ------------------------------------------------------------ copies

    def rows(self, offsets: U64, lengths: U64) -> U64:
        """Copies that cover ranges of the flat memory, as rows (device address, host address, bytes) in the order of
        the memory: ranges of host buffers left out, those that touch merged.

        Raises TandemError(INVALID_ARGUMENT) for a range that leaves its buffer.
        """
        offsets, lengths = offsets[lengths > 0], lengths[lengths > 0]
        order = np.argsort(offsets, kind="stable")
        offsets, lengths = offsets[order], lengths[order]
        buffer = np.searchsorted(self._ends, offsets, "right")
        if offsets.size and (buffer[-1] >= self._ends.size or (lengths > self._ends[buffer] - offsets).any()):
            raise TandemError(ErrorReason.INVALID_ARGUMENT, "a range leaves its buffer")
        staged = self._staged[buffer]
        offsets, lengths, buffer = offsets[staged], lengths[staged], buffer[staged]
        if not offsets.size:
            return np.empty((0, 3), np.uint64)
        apart = (offsets[:-1] + lengths[:-1] != offsets[1:]) | (buffer[:-1] != buffer[1:])
        first = np.concatenate(([0], np.flatnonzero(apart) + 1))
        buffer, within = buffer[first], offsets[first] - self._starts[buffer[first]]
        return np.stack(
            (self._device[buffer] + within, self._host[buffer] + within, np.add.reduceat(lengths, first)), axis=1
        )

    def _start(self, queue: Callable[[U64], None], copy: Copy) -> asyncio.Future[None]:
        if self._closed:
            raise TandemError(ErrorReason.DRAINING, "the rank is closing")
        if self._waiting >= MAX_WAITING:
            raise TandemError(ErrorReason.OVERLOADED, f"{MAX_WAITING} copies to or from the device are under way")
        self._waiting += 1
        end = asyncio.get_running_loop().run_in_executor(self._thread, self._carry_out, queue, copy)
        end.add_done_callback(self._ended)
        return end

    def _ended(self, end: asyncio.Future[None]) -> None:
        self._waiting -= 1

    def _carry_out(self, queue: Callable[[U64], None], copy: Copy) -> None:
        """Thread: makes the copies. When it returns or raises, none of them is under way any more."""
        for start in range(0, len(copy.rows), COPIES_PER_WAIT):
            if copy.withdrawn:
                return
            try:
                queue(copy.rows[start : start + COPIES_PER_WAIT])
            finally:
                self._gpu.finish()

    def _free(self) -> None:
        try:
            self._thread.submit(self._stack.close).result()
        except TandemError as error:
            log.warning("the mirror of GPU %d was not freed in order: %s", self.device, error.message)
        self._thread.shutdown()


def _open(cuda: Cuda, ordinal: int, sizes: list[int]) -> tuple[CudaDevice, list[int], contextlib.ExitStack]:
    """Thread: the GPU, the address of each pool's mirror, 0 for one of no bytes, and what frees both."""
    with contextlib.ExitStack() as stack:
        gpu = CudaDevice(cuda, ordinal)
        stack.callback(gpu.close)
        regions = [_map(stack, size) if size else 0 for size in sizes]
        for address, size in zip(regions, sizes, strict=True):
            if size:
                gpu.pin(address, size)
                stack.callback(gpu.unpin, address)
        return gpu, regions, stack.pop_all()


def _device_bytes(pool: Pool, where: Sequence[int | None]) -> int:
    return sum(buffer.bytes for buffer, place in zip(pool.buffers, where, strict=True) if place is not None)


def _mirrored(pool: Pool, where: Sequence[int | None], base: int) -> Pool:
    """The pool with its device buffers laid end to end from `base`."""
    buffers = []
    for buffer, place in zip(pool.buffers, where, strict=True):
        buffers.append(buffer if place is None else Buffer(base, buffer.bytes))
        base += 0 if place is None else buffer.bytes
    return replace(pool, buffers=tuple(buffers))


def _map(stack: contextlib.ExitStack, size: int) -> int:
    """Anonymous memory that ends with the stack; returns its address."""
    try:
        region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        message = f"no {size} bytes of host memory for the mirror: {error}"
        raise TandemError(ErrorReason.ENGINE_FAILED, message) from error
    stack.callback(region.close)
    # A child that shares the pages would leave this process a copy of them, which the GPU does not know.
    region.madvise(mmap.MADV_DONTFORK)
    return int(np.frombuffer(region, np.uint8).ctypes.data)
