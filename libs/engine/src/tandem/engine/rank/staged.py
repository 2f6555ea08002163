"""A lane whose writes wait for their source pages to come down from a device."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tandem.core.errors import TandemError
from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma.api import U64, SenderLane, Transfer, TransferResult, TransferStatus


@dataclass(slots=True)
class Copy:
    """Copies between a device and the host under way: those of one chunk, or of a room."""

    rows: U64
    """Device address, host address and bytes of each."""
    withdrawn: bool = False
    """Set on the loop: what is not queued yet need not be made."""


class Downloads(Protocol):
    """What brings the pages down."""

    def download(self, offsets: U64, lengths: U64) -> tuple[Copy, asyncio.Future[None]]:
        """Starts a download: it, and its end, which raises TandemError if it failed."""


class StagedLane:
    """The `SenderLane` over another one: download, then write."""

    def __init__(self, lane: SenderLane, downloads: Downloads) -> None:
        self._lane = lane
        self._downloads = downloads
        self._writes: set[StagedWrite] = set()

    @property
    def provider(self) -> str:
        """Name of the lane's provider."""
        return self._lane.provider

    def write(self, src: U64, dst: U64, lengths: U64, grant_id: GrantId, chunk: ChunkIndex) -> Transfer:
        """See `SenderLane.write`. What the lane itself refuses ends the transfer as FAILED, once its source is down."""
        copy, down = self._downloads.download(src, lengths)
        write = StagedWrite(copy, down, lambda: self._lane.write(src, dst, lengths, grant_id, chunk))
        self._writes.add(write)
        write.end.add_done_callback(lambda _: self._writes.discard(write))
        return write

    async def close(self) -> None:
        """Cancels what is under way and closes. Idempotent."""
        await asyncio.gather(*(write.cancel() for write in list(self._writes)))
        await self._lane.close()


class StagedWrite:
    """The `Transfer` of a staged lane's write."""

    def __init__(self, copy: Copy, down: asyncio.Future[None], begin: Callable[[], Transfer]) -> None:
        """begin: starts the write, once its source is down."""
        self._copy = copy
        self._transfer: Transfer | None = None
        self.end = asyncio.ensure_future(self._run(down, begin))

    async def wait(self) -> TransferResult:
        """Waits for the end. Raises nothing: the result says how it ended."""
        return await asyncio.shield(self.end)

    async def cancel(self) -> None:
        """Stops the write. Returns only when its source is read neither by the lane nor by the device's copy."""
        self._copy.withdrawn = True
        if self._transfer is not None:
            await self._transfer.cancel()
        await self.wait()

    async def _run(self, down: asyncio.Future[None], begin: Callable[[], Transfer]) -> TransferResult:
        started_ns = time.monotonic_ns()
        status, failure = TransferStatus.CANCELLED, None
        try:
            await down
            if not self._copy.withdrawn:
                self._transfer = begin()
        except TandemError as error:
            status, failure = TransferStatus.FAILED, error
        if self._transfer is not None:
            return await self._transfer.wait()
        return TransferResult(status, 0, None, failure, time.monotonic_ns() - started_ns)
