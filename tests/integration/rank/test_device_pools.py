"""Two ranks whose KV pools lie in a device, over real links and lanes and a stand-in for the CUDA driver.

Device addresses fault when they are used as host memory, so whatever arrives has gone through both mirrors.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import numpy as np
import pytest

from tandem.core.errors import ErrorReason
from tandem.core.ids import Role, RoomId
from tandem.core.room.events import Phase
from tandem.engine.rank.cuda import Cuda
from tandem.engine.rank.handles import ReceiverHandle, SenderHandle
from tandem.engine.rank.mirror import Mirror
from tandem.engine.rank.pools import Pool
from tandem.engine.rank.staging import Staging
from tests.support.cuda.standin import StandIn
from tests.support.rank.pair import PREFILL, Memory, Pair, pair, reached

pytestmark = [pytest.mark.cc, pytest.mark.timeout(60)]
SOURCE, TARGET = np.array([3, 4, 5, 9, 8]), np.array([40, 41, 7, 2, 3])
STATE_SOURCE, STATE_TARGET = np.array([1, 2]), np.array([5, 0])
KV_BYTES = 2 * 64


class DeviceMemory(Memory):
    """KV and state in a device; the arrays are the test's own view of them. Metadata rows are in the host."""

    def __init__(self, driver: StandIn, pages: int) -> None:
        super().__init__(pages=pages)
        self.driver = driver
        (first, one), (second, two) = (driver.allocate(pages, 64) for _ in range(2))
        state, self.state = driver.allocate(8, 24)
        self.kv = (one, two)
        self._buffers = {"kv": (first, second), "state:0:swa": (state,)}

    def staged(self) -> tuple[tuple[Pool, ...], Staging]:
        """Through a mirror."""
        pools = tuple(
            Pool(pool.name, self._buffers.get(pool.name, pool.buffers), pool.item_bytes, pool.entries)
            for pool in self.pools()
        )
        mirror = Mirror(pools, Cuda(self.driver.library))
        return mirror.pools, mirror


@dataclass
class Devices:
    """Both ranks, and the driver of each."""

    ranks: Pair
    prefill: StandIn
    decode: StandIn

    async def begin(self, room: int) -> tuple[SenderHandle, ReceiverHandle]:
        """Opens a room and offers its pages."""
        await self.ranks.open(room)
        sender = self.ranks.prefill.agent.sender(RoomId(room))
        receiver = self.ranks.decode.agent.receiver(RoomId(room))
        await reached(receiver, Phase.WAITING, Phase.FAILED)
        receiver.offer(TARGET, [STATE_TARGET], metadata_row=3)
        await reached(sender, Phase.WAITING, Phase.FAILED)
        return sender, receiver

    async def hand_over(self, room: int) -> tuple[SenderHandle, ReceiverHandle]:
        """The same, and pushes it in two chunks."""
        sender, receiver = await self.begin(room)
        sender.push(SOURCE[:2], last=False)
        sender.push(SOURCE[2:], [STATE_SOURCE], last=True, metadata_row=1)
        return sender, receiver

    def arrived(self) -> bool:
        """Whether decode's device holds what prefill's does."""
        source, target = self.ranks.prefill.memory, self.ranks.decode.memory
        same = [(theirs[TARGET] == ours[SOURCE]).all() for ours, theirs in zip(source.kv, target.kv, strict=True)]
        return all([*same, (target.state[STATE_TARGET] == source.state[STATE_SOURCE]).all()])

    def untouched(self) -> bool:
        """Whether nothing was written to decode's device."""
        return not any(array.any() for array in (*self.ranks.decode.memory.kv, self.ranks.decode.memory.state))


@pytest.fixture
def start(make_standin: Callable[[str], StandIn]) -> Callable[..., contextlib.AbstractAsyncContextManager[Devices]]:
    """Starts a pair over a provider."""

    @contextlib.asynccontextmanager
    async def started(provider: str = "tcp") -> AsyncIterator[Devices]:
        drivers = {Role.PREFILL: make_standin("prefill"), Role.DECODE: make_standin("decode")}

        memories = DeviceMemory(drivers[Role.PREFILL], 32), DeviceMemory(drivers[Role.DECODE], 48)
        async with pair(provider, memories=memories) as ranks:
            rng = np.random.default_rng(7)
            for array in (*ranks.prefill.memory.kv, ranks.prefill.memory.metadata, ranks.prefill.memory.state):
                array[:] = rng.integers(1, 256, array.shape, dtype=np.uint8)
            try:
                yield Devices(ranks, drivers[Role.PREFILL], drivers[Role.DECODE])
            finally:
                for driver in drivers.values():
                    driver.hold(False)
        for driver in drivers.values():
            assert (driver.pinned_bytes, driver.open) == (0, 0), "close gives everything back"

    return started


Start = Callable[..., contextlib.AbstractAsyncContextManager[Devices]]


@pytest.mark.parametrize("provider", ["tcp", "cma"])
async def test_kv_and_state_go_from_device_to_device(start: Start, provider: str) -> None:
    async with start(provider) as devices:
        assert devices.prefill.pinned_bytes == 32 * KV_BYTES + 8 * 24, "the metadata rows are the host's own"
        sender, receiver = await devices.hand_over(11)
        assert await reached(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, receiver.why
        assert devices.arrived(), "success is seen only once the device has it"
        assert await reached(sender, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, sender.why
        source, target = devices.ranks.prefill.memory, devices.ranks.decode.memory
        np.testing.assert_array_equal(target.metadata[3], source.metadata[1])
        others = np.setdiff1d(np.arange(48), TARGET)
        assert not any(array[others].any() for array in target.kv)
        assert (devices.prefill.calls("cuMemcpyHtoDAsync_v2"), devices.decode.calls("cuMemcpyDtoHAsync_v2")) == (0, 0)


async def test_rooms_share_the_lane_and_the_stream(start: Start) -> None:
    async with start() as devices:
        await asyncio.gather(*(devices.ranks.open(room) for room in range(20, 28)))
        agents, ends = devices.ranks, []
        for index, room in enumerate(range(20, 28)):
            sender, receiver = agents.prefill.agent.sender(RoomId(room)), agents.decode.agent.receiver(RoomId(room))
            sender.push([index], last=True, metadata_row=0)
            await reached(receiver, Phase.WAITING, Phase.FAILED)
            receiver.offer([40 - index], metadata_row=0 if index % 2 else 2)
            ends += [receiver, sender]
            if index % 2:
                assert [await reached(end, Phase.SUCCESS, Phase.FAILED) for end in ends] == [Phase.SUCCESS] * len(ends)
        for ours, theirs in zip(agents.prefill.memory.kv, agents.decode.memory.kv, strict=True):
            np.testing.assert_array_equal(theirs[40:32:-1], ours[:8])


async def test_nothing_is_sent_before_its_pages_are_down(start: Start) -> None:
    async with start() as devices:
        devices.prefill.hold(True)
        sender, receiver = await devices.hand_over(12)
        await asyncio.to_thread(devices.prefill.wait_held)
        await devices.ranks.open_echo()
        assert (sender.phase, receiver.phase) == (Phase.TRANSFERRING, Phase.WAITING), "no chunk has landed"
        devices.prefill.hold(False)
        assert await reached(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, receiver.why
        assert devices.arrived()


async def test_success_is_not_seen_before_the_pages_are_up(start: Start) -> None:
    async with start() as devices:
        devices.decode.hold(True)
        sender, receiver = await devices.hand_over(13)
        await asyncio.to_thread(devices.decode.wait_held)
        await devices.ranks.open_echo()
        assert (sender.phase, receiver.phase) == (Phase.TRANSFERRING, Phase.TRANSFERRING)
        assert devices.untouched()
        devices.decode.hold(False)
        assert await reached(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, receiver.why
        assert devices.arrived()
        assert await reached(sender, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, sender.why


async def test_an_abort_during_a_download_waits_for_it_and_sends_nothing(start: Start) -> None:
    async with start() as devices:
        devices.prefill.hold(True)
        sender, receiver = await devices.hand_over(14)
        await asyncio.to_thread(devices.prefill.wait_held)
        sender.abort(ErrorReason.CANCELLED, "the client left")
        assert await reached(receiver, Phase.FAILED) is Phase.FAILED, "decode need not wait for prefill's copy"
        assert sender.phase is Phase.TRANSFERRING, "the pages are still read"
        devices.prefill.hold(False)
        assert await reached(sender, Phase.FAILED) is Phase.FAILED
        assert devices.prefill.calls("cuStreamSynchronize") == 1, "the second chunk's copies were not begun"
        assert devices.untouched()
        assert not any(devices.ranks.decode.memory.metadata.ravel())


@pytest.mark.parametrize("how", ["abort", "peer"])
async def test_what_comes_during_an_upload_waits_for_it(start: Start, how: str) -> None:
    async with start() as devices:
        devices.decode.hold(True)
        _, receiver = await devices.hand_over(15)
        await asyncio.to_thread(devices.decode.wait_held)
        if how == "abort":
            receiver.abort(ErrorReason.CANCELLED, "the client left")
        else:
            devices.ranks.decode.agent.peer_gone(PREFILL)
        await asyncio.sleep(0.05)
        assert receiver.phase is Phase.TRANSFERRING
        assert not receiver.quiet, "the pages are still written"
        devices.decode.hold(False)
        assert await reached(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, "verified KV is not taken back"
        assert devices.arrived()


@pytest.mark.parametrize(
    ("side", "call"),
    [
        ("prefill", "cuMemcpyDtoHAsync_v2"),
        ("prefill", "cuStreamSynchronize"),
        ("decode", "cuMemcpyHtoDAsync_v2"),
        ("decode", "cuStreamSynchronize"),
    ],
)
async def test_an_error_of_the_driver_fails_the_room_on_both_sides_and_no_other(
    start: Start, side: str, call: str
) -> None:
    async with start() as devices:
        driver: StandIn = getattr(devices, side)
        driver.fail(call)
        sender, receiver = await devices.hand_over(16)
        for handle in (sender, receiver):
            assert await reached(handle, Phase.SUCCESS, Phase.FAILED) is Phase.FAILED
            assert handle.why is not None
            assert handle.why.reason is ErrorReason.TRANSFER_FAILED
            assert handle.why.message == f"{call}: told to fail (719)"
        counters = devices.ranks.decode.agent.counters
        assert (counters.granted_pages, counters.granted_rows, counters.kv_bytes) == (0, 0, 0)
        driver.fail(call, 0)
        _, receiver = await devices.hand_over(17)
        assert await reached(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, receiver.why
        assert devices.arrived()


async def test_a_lost_peer_during_a_download_fails_the_room_after_it(start: Start) -> None:
    async with start() as devices:
        devices.prefill.hold(True)
        sender, receiver = await devices.hand_over(18)
        await asyncio.to_thread(devices.prefill.wait_held)
        devices.ranks.decode.agent.peer_gone(PREFILL)
        await reached(receiver, Phase.FAILED)
        await asyncio.sleep(0.05)
        assert sender.phase is Phase.TRANSFERRING
        devices.prefill.hold(False)
        assert await reached(sender, Phase.FAILED) is Phase.FAILED


@pytest.mark.parametrize("side", ["prefill", "decode"])
async def test_a_rank_that_closes_during_a_copy_waits_for_it(start: Start, side: str) -> None:
    async with start() as devices:
        driver: StandIn = getattr(devices, side)
        driver.hold(True)
        await devices.hand_over(19)
        await asyncio.to_thread(driver.wait_held)
        closing = asyncio.ensure_future(getattr(devices.ranks, side).agent.close())
        await asyncio.sleep(0.05)
        assert driver.pinned_bytes > 0
        assert not closing.done()
        driver.hold(False)
        await closing
        assert driver.pinned_bytes == 0
