"""A lane whose writes wait for their source, over doubles of the lane and of the download."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import ChunkIndex, GrantId
from tandem.engine.rank.staged import Copy, StagedLane
from tandem.engine.rank.staging import DIRECT
from tandem.rdma.api import U64, Transfer, TransferResult, TransferStatus

SRC, DST, LENGTHS = (np.array([value], np.uint64) for value in (0, 64, 8))
DONE = TransferResult(TransferStatus.DONE, 8, 7, None, 1)
LOST = TandemError(ErrorReason.LINK_LOST, "gone")


class Written:
    """A write of the lane below; it ends when it is told to, or cancelled."""

    def __init__(self) -> None:
        self.end: asyncio.Future[TransferResult] = asyncio.get_running_loop().create_future()

    async def wait(self) -> TransferResult:
        return await asyncio.shield(self.end)

    async def cancel(self) -> None:
        self.end.set_result(TransferResult(TransferStatus.CANCELLED, 3, None, None, 1))


class Below:
    """The lane below, and the downloads."""

    provider = "double"

    def __init__(self) -> None:
        self.writes: list[tuple[object, ...]] = []
        self.written = Written()
        self.refuses: TandemError | None = None
        self.copy = Copy(np.empty((0, 3), np.uint64))
        self.down: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = False

    def write(self, *arguments: object) -> Transfer:
        if self.refuses is not None:
            raise self.refuses
        self.writes.append(arguments)
        return self.written

    async def close(self) -> None:
        self.closed = True

    def download(self, offsets: U64, lengths: U64) -> tuple[Copy, asyncio.Future[None]]:
        assert (offsets is SRC, lengths is LENGTHS) == (True, True)
        return self.copy, self.down


def _begin(below: Below) -> tuple[StagedLane, Transfer]:
    lane = StagedLane(below, below)
    return lane, lane.write(SRC, DST, LENGTHS, GrantId(1), ChunkIndex(2))


async def _settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_write_begins_when_its_source_is_down() -> None:
    below = Below()
    lane, write = _begin(below)
    await _settled()
    assert below.writes == []
    below.down.set_result(None)
    await _settled()
    assert below.writes == [(SRC, DST, LENGTHS, 1, 2)]
    below.written.end.set_result(DONE)
    assert await write.wait() is DONE
    assert lane.provider == "double"


@pytest.mark.parametrize("where", ["download", "write"])
async def test_a_failure_before_the_write_is_its_result(where: str) -> None:
    below = Below()
    _, write = _begin(below)
    if where == "write":
        below.refuses = LOST
        below.down.set_result(None)
    else:
        below.down.set_exception(LOST)
    result = await write.wait()
    assert (result.status, result.bytes, result.error) == (TransferStatus.FAILED, 0, LOST)
    assert below.writes == []


@pytest.mark.parametrize("failed", [False, True])
async def test_a_cancel_during_the_download_waits_for_it_and_nothing_is_written(failed: bool) -> None:
    below = Below()
    _, write = _begin(below)
    cancelling = asyncio.ensure_future(write.cancel())
    await _settled()
    assert below.copy.withdrawn
    assert not cancelling.done(), "the copy still reads the page"
    if failed:
        below.down.set_exception(LOST)
    else:
        below.down.set_result(None)
    await cancelling
    assert below.writes == []
    assert (await write.wait()).status is (TransferStatus.FAILED if failed else TransferStatus.CANCELLED)
    await write.cancel()


async def test_a_cancel_during_the_write_cancels_that() -> None:
    below = Below()
    _, write = _begin(below)
    below.down.set_result(None)
    await _settled()
    await write.cancel()
    assert (await write.wait()).bytes == 3


async def test_close_waits_for_downloads_and_then_closes_the_lane() -> None:
    below = Below()
    lane, write = _begin(below)
    closing = asyncio.ensure_future(lane.close())
    await _settled()
    assert not below.closed
    below.down.set_result(None)
    await closing
    assert below.closed
    assert (await write.wait()).status is TransferStatus.CANCELLED


async def test_pools_of_the_host_keep_their_lane() -> None:
    below = Below()
    assert DIRECT.over(below) is below
    await DIRECT.upload(SRC, LENGTHS)
