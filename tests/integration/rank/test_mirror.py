"""The pinned mirror of pools in a GPU, over a stand-in for the CUDA driver: the real ctypes calls, no GPU."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.engine.rank.cuda import Cuda
from tandem.engine.rank.mirror import COPIES_PER_WAIT, MAX_WAITING, Mirror
from tandem.engine.rank.pools import Pool
from tandem.rdma.api import U64, Buffer
from tests.support.cuda.standin import StandIn

pytestmark = [pytest.mark.cc, pytest.mark.timeout(60)]
PAGE, PAGES = 64, 600


class Engine:
    """Two KV buffers of the device, with a metadata buffer of the host between them in the flat memory."""

    def __init__(self, standin: StandIn, max_bytes: int = 0, device: int = 0) -> None:
        (first, self.first), (second, self.second) = (standin.allocate(PAGES, PAGE, device=device) for _ in range(2))
        self.rows = np.zeros((4, 16), np.uint8)
        pools = (
            Pool("kv", (first, second), (PAGE, PAGE), PAGES),
            Pool("metadata", (Buffer(self.rows.ctypes.data, self.rows.nbytes),), (16,), 4),
        )
        self.mirror = Mirror(pools, Cuda(standin.library), max_bytes)
        self.seen = [_array(buffer) for buffer in self.mirror.pools[0].buffers]


def _array(buffer: Buffer) -> np.ndarray:
    return np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * buffer.bytes).from_address(buffer.address)).reshape(
        -1, PAGE
    )


def _pages(*pages: int, buffer: int = 0) -> tuple[U64, U64]:
    index = np.array(pages, np.uint64)
    return index * np.uint64(PAGE) + np.uint64(buffer * PAGES * PAGE), np.full(index.size, PAGE, np.uint64)


async def test_pages_go_down_and_up_and_nothing_else_changes(standin: StandIn) -> None:
    engine = Engine(standin)
    engine.first[:] = np.random.default_rng(1).integers(1, 256, engine.first.shape, dtype=np.uint8)
    _, down = engine.mirror.download(*_pages(7, 3, 4))
    await down
    np.testing.assert_array_equal(engine.seen[0][[3, 4, 7]], engine.first[[3, 4, 7]])
    assert not np.delete(engine.seen[0], [3, 4, 7], axis=0).any()
    assert not engine.seen[1].any()
    engine.seen[1][[1, 9]] = 5
    await engine.mirror.upload(*_pages(9, 1, buffer=1))
    assert (engine.second[[1, 9]] == 5).all()
    assert not np.delete(engine.second, [1, 9], axis=0).any()
    assert standin.calls("cuMemcpyDtoHAsync_v2") == 2, "pages 3 and 4 are one copy"
    await engine.mirror.close()


async def test_buffers_of_the_host_stand_for_themselves(standin: StandIn) -> None:
    engine = Engine(standin)
    (metadata,) = engine.mirror.pools[1].buffers
    assert metadata.address == engine.rows.ctypes.data
    start = 2 * PAGES * PAGE
    await engine.mirror.upload(np.array([start + 16], np.uint64), np.array([16], np.uint64))
    assert standin.calls("cuMemcpyHtoDAsync_v2") == 0
    assert engine.mirror.bytes == standin.pinned_bytes == start
    await engine.mirror.close()


async def test_touching_ranges_of_two_buffers_are_two_copies(standin: StandIn) -> None:
    engine = Engine(standin)
    ends = [np.concatenate(pair) for pair in zip(_pages(0, buffer=1), _pages(PAGES - 1), strict=True)]
    rows = engine.mirror.rows(ends[0], ends[1])
    assert rows[:, 2].tolist() == [PAGE, PAGE]
    device = [buffer.address for buffer in engine.mirror.pools[0].buffers]
    assert rows[:, 1].tolist() == [device[0] + (PAGES - 1) * PAGE, device[1]]
    await engine.mirror.close()


@pytest.mark.parametrize(
    ("offset", "length"), [(PAGES * PAGE - 1, 2), (2 * PAGES * PAGE + 64, 1), (2 * PAGES * PAGE, 65)]
)
async def test_a_range_that_leaves_its_buffer_is_refused(standin: StandIn, offset: int, length: int) -> None:
    engine = Engine(standin)
    with pytest.raises(TandemError) as caught:
        engine.mirror.download(np.array([offset], np.uint64), np.array([length], np.uint64))
    assert caught.value.reason is ErrorReason.INVALID_ARGUMENT
    await engine.mirror.close()


async def test_scattered_pages_are_queued_in_bounded_batches(standin: StandIn) -> None:
    engine = Engine(standin)
    engine.first[:] = 9
    await engine.mirror.download(*_pages(*range(0, PAGES, 2)))[1]
    assert (engine.seen[0][::2] == 9).all()
    assert not engine.seen[0][1::2].any()
    assert standin.calls("cuMemcpyDtoHAsync_v2") == PAGES // 2
    assert standin.most_queued == COPIES_PER_WAIT
    assert standin.calls("cuStreamSynchronize") == 2
    await engine.mirror.close()


async def test_the_loop_runs_on_while_copies_do_not(standin: StandIn) -> None:
    engine = Engine(standin)
    standin.hold(True)
    _, down = engine.mirror.download(*_pages(1))
    await asyncio.to_thread(standin.wait_held)
    assert not down.done()
    standin.hold(False)
    await down
    await engine.mirror.close()


async def test_a_withdrawn_copy_is_not_begun_and_one_under_way_stops_after_its_batch(standin: StandIn) -> None:
    engine = Engine(standin)
    standin.hold(True)
    running, first = engine.mirror.download(*_pages(*range(0, PAGES, 2)))
    waiting, second = engine.mirror.download(*_pages(1))
    await asyncio.to_thread(standin.wait_held)
    running.withdrawn = waiting.withdrawn = True
    standin.hold(False)
    await first
    await second
    assert standin.calls("cuMemcpyDtoHAsync_v2") == COPIES_PER_WAIT
    await engine.mirror.close()


async def test_an_error_of_the_driver_is_named_and_the_next_copy_works(standin: StandIn) -> None:
    engine = Engine(standin)
    standin.fail("cuMemcpyHtoDAsync_v2")
    with pytest.raises(TandemError, match=r"cuMemcpyHtoDAsync_v2: told to fail \(719\)") as caught:
        await engine.mirror.upload(*_pages(1))
    assert caught.value.reason is ErrorReason.TRANSFER_FAILED
    standin.fail("cuMemcpyHtoDAsync_v2", 0)
    engine.seen[0][1] = 3
    await engine.mirror.upload(*_pages(1))
    assert (engine.first[1] == 3).all()
    await engine.mirror.close()


async def test_what_was_queued_before_an_error_is_waited_for(standin: StandIn) -> None:
    engine = Engine(standin)
    unpinned = engine.mirror.rows(*_pages(0, 2, 4))
    unpinned[2, 1] = engine.rows.ctypes.data  # the third copy is refused, two are in the stream
    engine.mirror.rows = lambda *_: unpinned  # type: ignore[method-assign]
    with pytest.raises(TandemError, match="invalid argument"):
        await engine.mirror.upload(*_pages(1))
    assert standin.calls("cuStreamSynchronize") == 1
    await engine.mirror.close()
    assert standin.open == 0, "a stream with copies in it can't be given back"


async def test_copies_wait_for_an_event_on_the_gpu(standin: StandIn) -> None:
    engine = Engine(standin)
    engine.mirror.after(0x1234)
    assert standin.last_event == 0x1234
    await engine.mirror.close()


async def test_too_many_copies_are_refused(standin: StandIn) -> None:
    engine = Engine(standin)
    standin.hold(True)
    ends = [engine.mirror.download(*_pages(1))[1] for _ in range(MAX_WAITING)]
    with pytest.raises(TandemError) as caught:
        await engine.mirror.upload(*_pages(2))
    assert caught.value.reason is ErrorReason.OVERLOADED
    standin.hold(False)
    await asyncio.gather(*ends)
    await asyncio.sleep(0)
    await engine.mirror.upload(*_pages(2))
    await engine.mirror.close()


async def test_close_waits_for_copies_and_gives_everything_back(standin: StandIn) -> None:
    engine = Engine(standin)
    standin.hold(True)
    _, down = engine.mirror.download(*_pages(1))
    await asyncio.to_thread(standin.wait_held)
    closing = asyncio.ensure_future(engine.mirror.close())
    await asyncio.sleep(0)
    assert standin.pinned_bytes == engine.mirror.bytes
    assert not closing.done()
    standin.hold(False)
    await closing
    await down
    await engine.mirror.close()
    assert (standin.pinned_bytes, standin.open) == (0, 0)
    with pytest.raises(TandemError) as caught:
        engine.mirror.download(*_pages(1))
    assert caught.value.reason is ErrorReason.DRAINING


async def test_a_mirror_over_the_limit_is_refused_before_anything_is_pinned(standin: StandIn) -> None:
    size = 2 * PAGES * PAGE
    with pytest.raises(TandemError, match=f"{size} bytes, TANDEM_RANK_STAGING_MAX_BYTES allows {size - 1}"):
        Engine(standin, max_bytes=size - 1)
    assert standin.calls("cuMemHostRegister_v2") == 0
    await Engine(standin, max_bytes=size).mirror.close()


@pytest.mark.parametrize("call", ["cuMemHostRegister_v2", "cuStreamCreate", "cuCtxSetCurrent"])
def test_a_failed_start_leaves_nothing_behind(standin: StandIn, call: str) -> None:
    standin.fail(call, 2)
    with pytest.raises(TandemError, match=rf"{call}: out of memory \(2\)"):
        Engine(standin)
    assert (standin.pinned_bytes, standin.open) == (0, 0)


def test_pools_on_two_gpus_or_on_none_are_refused(standin: StandIn) -> None:
    buffers = [standin.allocate(PAGE, device=device)[0] for device in (0, 1)]
    cuda = Cuda(standin.library)
    assert [cuda.device_of(buffer.address) for buffer in buffers] == [0, 1]
    with pytest.raises(TandemError, match=r"one GPU, not on \[0, 1\]"):
        Mirror((Pool("kv", tuple(buffers), (PAGE, PAGE), 1),), cuda)
    host = np.zeros(PAGE, np.uint8)
    with pytest.raises(TandemError, match="not on none"):
        Mirror((Pool("kv", (Buffer(host.ctypes.data, PAGE),), (PAGE,), 1),), cuda)


def test_a_machine_without_the_driver_is_told(tmp_path: object) -> None:
    with pytest.raises(TandemError) as caught:
        Cuda(f"{tmp_path}/libcuda.so.1")
    assert caught.value.reason is ErrorReason.NOT_SUPPORTED
