"""Pools that cards reach in a GPU: what is waited for, over a stand-in for the CUDA driver. No card was at hand."""

from __future__ import annotations

import asyncio
import mmap
import os
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RoomId
from tandem.core.room.events import Phase
from tandem.engine.rank.cuda import Cuda
from tandem.engine.rank.gpu_direct import GpuDirect
from tandem.engine.rank.handles import ReceiverHandle, SenderHandle
from tandem.engine.rank.pools import Pool
from tandem.engine.rank.staging import Direct, Staging
from tandem.rdma import open_endpoint
from tandem.rdma.api import Buffer, DmaBuf, EndpointSettings
from tests.support.cuda.standin import StandIn
from tests.support.rank.pair import Memory, Pair, pair, reached

pytestmark = [pytest.mark.cc, pytest.mark.timeout(60)]
ROWS = np.zeros((4, 16), np.uint8)
RANGE = (np.zeros(1, np.uint64), np.ones(1, np.uint64))


def pools_of(standin: StandIn) -> tuple[Pool, ...]:
    """KV in the device, at no page's beginning; metadata rows in the host."""
    whole, _ = standin.allocate(3, mmap.PAGESIZE)
    kv = Buffer(whole.address + 64, 2 * mmap.PAGESIZE)
    return (
        Pool("kv", (kv,), (mmap.PAGESIZE,), 2),
        Pool("metadata", (Buffer(ROWS.ctypes.data, ROWS.nbytes),), (16,), 4),
    )


async def test_each_buffer_of_the_device_has_its_dma_buf_until_the_end(standin: StandIn) -> None:
    pools = pools_of(standin)
    direct = GpuDirect(pools, Cuda(standin.library))
    (kv,), (metadata,) = (pool.buffers for pool in direct.pools)
    assert kv.dmabuf is not None
    assert (kv.address, kv.bytes, kv.dmabuf.offset) == (pools[0].buffers[0].address, 2 * mmap.PAGESIZE, 64)
    os.fstat(kv.dmabuf.fd)
    assert metadata == pools[1].buffers[0]
    await direct.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(kv.dmabuf.fd)
    assert standin.open == 0


async def test_an_offer_and_a_write_wait_for_what_the_gpu_computes(standin: StandIn) -> None:
    direct = GpuDirect(pools_of(standin), Cuda(standin.library))
    direct.after(77)
    assert standin.last_event == 77
    standin.hold(True)
    offer, (copy, write) = direct.writable(), direct.download(*RANGE)
    await asyncio.to_thread(standin.wait_held)
    assert not copy.rows.size
    assert not offer.done()
    assert not write.done()
    standin.hold(False)
    await asyncio.gather(offer, write)
    await direct.close()
    with pytest.raises(TandemError) as closed:
        direct.writable()
    assert closed.value.reason is ErrorReason.DRAINING


@pytest.mark.parametrize(("sees", "flushes"), [(False, 3), (True, 0)])
async def test_writes_are_flushed_where_the_gpu_does_not_see_them(standin: StandIn, sees: bool, flushes: int) -> None:
    if sees:
        standin.see_writes()
    direct = GpuDirect(pools_of(standin), Cuda(standin.library))
    await direct.upload(*RANGE)
    await direct.settle()
    assert standin.calls("cuFlushGPUDirectRDMAWrites") == flushes, "once to try it, then for each room"
    await direct.close()


def test_a_gpu_that_can_not_be_flushed_is_said_at_start(standin: StandIn) -> None:
    standin.fail("cuFlushGPUDirectRDMAWrites", 801)
    with pytest.raises(TandemError, match="cuFlushGPUDirectRDMAWrites: "):
        GpuDirect(pools_of(standin), Cuda(standin.library))
    assert standin.open == 0


def test_a_driver_that_exports_nothing_is_said(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.fail("cuMemGetHandleForAddressRange", 801)
    with pytest.raises(TandemError, match="cuMemGetHandleForAddressRange: "):
        GpuDirect(pools_of(standin), Cuda(standin.library))
    old = Cuda(standin.library)
    monkeypatch.setattr(old, "_newer", False)
    with pytest.raises(TandemError, match=r"older than 11\.7"):
        GpuDirect(pools_of(standin), old)
    assert standin.open == 0


@pytest.mark.parametrize(("providers", "checksum"), [(("verbs", "tcp"), False), (("verbs",), True), (("cma",), False)])
def test_nothing_but_verbs_without_checksums_touches_it(providers: tuple[str, ...], checksum: bool) -> None:
    buffer = Buffer(4096, 4096, DmaBuf(0, 0))
    with pytest.raises(TandemError, match="by the provider verbs alone") as refused:
        open_endpoint([buffer], EndpointSettings(providers=providers, checksum=checksum))
    assert refused.value.field == "providers"


@dataclass
class Busy(Memory):
    """Decode's memory, on which the GPU still computes until the test says otherwise."""

    computed: list[asyncio.Future[None]] = field(default_factory=list)
    settled: int = 0
    may_settle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.may_settle.set()

    def staged(self) -> tuple[tuple[Pool, ...], Staging]:
        """The pools, and what makes their offers wait."""
        return self.pools(), Computing(self)


class Computing(Direct):
    """A `Staging` whose pages are not writable yet."""

    def __init__(self, memory: Busy) -> None:
        self._memory = memory

    def writable(self) -> asyncio.Future[None]:  # type: ignore[override]
        """One more offer that waits."""
        self._memory.computed.append(asyncio.get_running_loop().create_future())
        return self._memory.computed[-1]

    async def settle(self) -> None:
        """An aborted room is quiet only after this."""
        self._memory.settled += 1
        await self._memory.may_settle.wait()


async def test_a_room_is_offered_when_its_pages_may_be_written() -> None:
    memory = Busy(pages=48, windows=12, slots=3)
    async with pair(memories=(Memory(), memory)) as ranks:
        sender, receiver = await _waiting(ranks)
        assert ranks.decode.agent.counters.granted_pages == 0
        assert sender.phase is Phase.BOOTSTRAPPING
        memory.computed[0].set_result(None)
        await reached(sender, Phase.WAITING)
        assert ranks.decode.agent.counters.granted_pages == 2

        memory.may_settle.clear()
        receiver.abort(ErrorReason.CANCELLED, "the test has enough")
        await reached(sender, Phase.FAILED)
        assert (memory.settled, receiver.phase) == (1, Phase.TRANSFERRING), "what has landed may still be on its way"
        memory.may_settle.set()
        await reached(receiver, Phase.FAILED)


async def _waiting(ranks: Pair) -> tuple[SenderHandle, ReceiverHandle]:
    """A room whose offer waits."""
    await ranks.open(5)
    sender, receiver = ranks.prefill.agent.sender(RoomId(5)), ranks.decode.agent.receiver(RoomId(5))
    await reached(receiver, Phase.WAITING)
    receiver.offer([1, 2], metadata_row=0)
    return sender, receiver


@pytest.mark.parametrize("when", ["while it ends", "after its end"])
async def test_a_room_that_ends_while_its_offer_waits_grants_nothing(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Busy(pages=48, windows=12, slots=3)
    async with pair(memories=(Memory(), memory)) as ranks:
        _, receiver = await _waiting(ranks)
        [link] = {room.link for room in ranks.decode.agent._rooms.values()}
        granted: list[object] = []
        lane = link.receiver_lane
        link.receiver_lane = SimpleNamespace(grant=lambda *given: granted.append(given), close=lane.close)
        receiver.abort(ErrorReason.CANCELLED, "the test has enough")
        if when == "while it ends":
            memory.computed[0].set_result(None)
        await reached(receiver, Phase.FAILED)
        if when == "after its end":
            memory.computed[0].set_result(None)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert (granted, link.open_offers) == ([], 0)
        link.receiver_lane = lane
    assert "crashed" not in caplog.text


async def test_a_gpu_that_fails_ends_the_room() -> None:
    memory = Busy(pages=48, windows=12, slots=3)
    async with pair(memories=(Memory(), memory)) as ranks:
        _, receiver = await _waiting(ranks)
        memory.computed[0].set_exception(TandemError(ErrorReason.TRANSFER_FAILED, "cuStreamSynchronize: told to fail"))
        await reached(receiver, Phase.FAILED)
        assert receiver.why is not None
        assert receiver.why.reason is ErrorReason.TRANSFER_FAILED
