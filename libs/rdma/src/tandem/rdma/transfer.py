"""A write under way, as its lane and its caller share it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import MAX_ID, ChunkIndex, GrantId
from tandem.core.pages import Ranges, merge_ranges
from tandem.rdma.api import MAX_RANGES, U64, TransferResult, TransferStatus
from tandem.rdma.checksum import ChunkHasher
from tandem.rdma.iov import IovCursor
from tandem.rdma.memory import Memory, as_offsets

MAX_WRITES = 4096
"""Most writes that are under way on one lane; more are refused with OVERLOADED."""
_NOTHING = IovCursor(np.empty((0, 2), np.uint64))


class WriteTransfer:
    """The `Transfer` of a lane's write. The lane's thread changes its fields, the loop settles it."""

    def __init__(self, write_id: int, ranges: Ranges, grant_id: GrantId, chunk: ChunkIndex, fence_ms: int) -> None:
        self.write_id = write_id
        self.ranges = ranges
        self.grant_id = grant_id
        self.chunk = chunk
        self.total = ranges.bytes
        self.cursor = _NOTHING
        self.hasher: ChunkHasher | None = None
        self.outstanding = 0
        """Pieces announced to the peer that it may still be reading."""
        self.sent = 0
        """Bytes that were sent or announced."""
        self.cancelled = False
        self.fence_at_ns = 0
        self.refusal: TandemError | None = None
        self.withdraw: Callable[[WriteTransfer], None] = lambda _: None
        """Loop: set by the lane; makes the worker drop the write, and `settle` it."""
        self.on_settled: Callable[[WriteTransfer], None] = lambda _: None
        """Loop: set by the lane; called at the end."""
        self._fence_ms = fence_ms
        self._started_ns = time.monotonic_ns()
        self._end: asyncio.Future[TransferResult] = asyncio.get_running_loop().create_future()

    @property
    def left(self) -> int:
        """Bytes not sent yet."""
        return self.total - self.sent

    async def wait(self) -> TransferResult:
        """Waits for the end. Raises nothing: the result says how it ended."""
        return await asyncio.shield(self._end)

    async def cancel(self) -> None:
        """Stops the write. Returns only when its source is not read any more. Idempotent."""
        self.ask_to_stop()
        await asyncio.shield(self._end)

    def ask_to_stop(self) -> None:
        """Loop: begins a cancellation."""
        if not self.cancelled and not self._end.done():
            self.fence_at_ns = time.monotonic_ns() + self._fence_ms * 1_000_000
            self.cancelled = True
            self.withdraw(self)

    def settle(self, status: TransferStatus, error: TandemError | None = None) -> None:
        """Loop: the end."""
        if self._end.done():
            return
        done = status is TransferStatus.DONE
        checksum = self.hasher.value() if done and self.hasher else None
        elapsed_ns = time.monotonic_ns() - self._started_ns
        self._end.set_result(TransferResult(status, self.sent, checksum, error, elapsed_ns))
        self.on_settled(self)


def checked_ranges(memory: Memory, src: U64, dst: U64, lengths: U64, grant_id: GrantId, chunk: ChunkIndex) -> Ranges:
    """The merged ranges of a write. Raises TandemError(INVALID_ARGUMENT) as `SenderLane.write` says."""
    ranges = Ranges(as_offsets(src), as_offsets(dst), as_offsets(lengths))
    counts = {ranges.src.size, ranges.dst.size, ranges.lengths.size}
    if len(counts) != 1:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"src, dst and lengths have unequal counts {sorted(counts)}")
    if ranges.src.size > MAX_RANGES:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{ranges.src.size} ranges; {MAX_RANGES} are allowed")
    if not memory.contains(ranges.src, ranges.lengths):
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT, f"a source range leaves the local memory of {memory.bytes} bytes"
        )
    if not 1 <= grant_id <= MAX_ID or not 0 <= chunk <= MAX_ID:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"grant {grant_id} or chunk {chunk} is out of range")
    if not ranges.lengths.all():
        some = ranges.lengths > 0
        ranges = Ranges(ranges.src[some], ranges.dst[some], ranges.lengths[some])
    return merge_ranges(ranges)
