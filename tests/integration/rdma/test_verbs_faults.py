"""What a verbs lane does when its devices fail, on a device in software that fails as it is told."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from tandem.core.errors import ErrorReason
from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma import (
    ChunkLanded,
    ChunkRefused,
    Direction,
    Endpoint,
    EndpointSettings,
    LaneEvent,
    LaneLost,
    ReceiverLane,
    SenderLane,
    Transfer,
    TransferResult,
    TransferStatus,
    VerbsSettings,
    open_endpoint,
)
from tests.support.rdma.double import DoubleContext, DoubleQp, Fabric, SendRequest, use_double
from tests.support.rdma.pools import Bytes, buffers_of, random_pool, u64

KIB, MIB = 1 << 10, 1 << 20
POOL = 4 * MIB
PIECE = 64 * KIB
VERBS = VerbsSettings(piece_bytes=PIECE, window_bytes=4 * PIECE, receive_depth=8)


@pytest.fixture
def fabric(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fabric]:
    """The devices; nothing of them may be left at the end."""
    with use_double(monkeypatch) as made:
        yield made
    assert not made.open


@dataclass
class Lane:
    """A lane between two endpoints of this process."""

    ends: tuple[Endpoint, Endpoint]
    sender: SenderLane
    receiver: ReceiverLane
    source: Bytes
    pool: Bytes
    events: list[LaneEvent] = field(default_factory=list)
    lost: asyncio.Queue[LaneEvent] = field(default_factory=asyncio.Queue)
    """What the sender's end says."""

    def write(self, grant: int, offset: int, count: int, chunk: int = 0) -> Transfer:
        """Begins a write of bytes to where they lie in the source, too."""
        return self.sender.write(u64(offset), u64(offset), u64(count), GrantId(grant), ChunkIndex(chunk))

    def holds(self, offset: int, count: int) -> bool:
        """Whether the receiver has these bytes."""
        return np.array_equal(self.pool[offset : offset + count], self.source[offset : offset + count])


async def open_lane(verbs: VerbsSettings = VERBS, fence_ms: int = 100) -> Lane:
    source, pool = random_pool(POOL, 5), np.zeros(POOL, np.uint8)
    ends = []
    for memory, direction in ((source, Direction.SEND), (pool, Direction.RECEIVE)):
        settings = EndpointSettings(("verbs",), direction=direction, verbs=verbs, fence_ms=fence_ms)
        end = open_endpoint(buffers_of(memory), settings)
        await end.start()
        ends.append(end)
    events: list[LaneEvent] = []
    lost: asyncio.Queue[LaneEvent] = asyncio.Queue()
    accepted = ends[0].accept(ends[1].offer(), lost.put_nowait)
    receiver = await ends[1].connect(accepted.answer, events.append)
    return Lane((ends[0], ends[1]), accepted.lane, receiver, source, pool, events, lost)


@pytest.fixture
async def lane(fabric: Fabric) -> AsyncIterator[Lane]:
    """A lane over two devices."""
    made = await open_lane()
    yield made
    fabric.fault = lambda *_: ""
    fabric.release()
    for end in reversed(made.ends):
        await end.close()


async def ended(transfer: Transfer) -> TransferResult:
    return await asyncio.wait_for(transfer.wait(), 10)


def grant_all(lane: Lane, grant_id: int = 1) -> None:
    lane.receiver.grant(GrantId(grant_id), u64(0), u64(POOL))


async def test_a_lost_acknowledgement_writes_twice_and_lands_once(fabric: Fabric, lane: Lane) -> None:
    grant_all(lane)
    lost: list[int] = []

    def lose(_: DoubleQp, request: SendRequest) -> str:
        if request.opcode and len(lost) < 2:
            lost.append(request.imm_data)
            return "lose_ack"
        return ""

    fabric.fault = lose
    result = await ended(lane.write(1, 0, MIB))
    assert result.status is TransferStatus.DONE
    assert len(lost) == 2
    await asyncio.sleep(0.05)
    assert [event for event in lane.events if isinstance(event, ChunkLanded)] == lane.events
    assert len(lane.events) == 1
    assert lane.events[0].checksum == result.checksum  # type: ignore[union-attr]
    assert lane.holds(0, MIB)


async def test_tags_begin_anew_after_the_last(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def note(_: DoubleQp, request: SendRequest) -> str:
        if request.opcode:
            seen.append(socket.ntohl(request.imm_data))
        return ""

    fabric.fault = note
    monkeypatch.setattr(secrets, "randbelow", lambda limit: limit - 2)
    lane = await open_lane()
    grant_all(lane)
    assert [(await ended(lane.write(1, 0, count))).status for count in (4 * PIECE, PIECE)] == [TransferStatus.DONE] * 2
    assert sorted(seen) == [0, 1, 2, 2**32 - 2, 2**32 - 1]
    assert lane.holds(0, 4 * PIECE)
    for end in reversed(lane.ends):
        await end.close()


async def test_a_refused_key_fails_its_write_alone(fabric: Fabric, lane: Lane) -> None:
    grant_all(lane)
    low = int(lane.pool.ctypes.data)
    fabric.fault = lambda _, request: "access" if request.remote - low < PIECE else ""
    bad, good = lane.write(1, 0, MIB), lane.write(1, 2 * MIB, MIB, 1)
    result = await ended(bad)
    assert result.status is TransferStatus.FAILED
    assert result.error is not None
    assert result.error.reason is ErrorReason.TRANSFER_FAILED
    assert "REM_ACCESS" in result.error.message
    assert (await ended(good)).status is TransferStatus.DONE
    assert lane.holds(2 * MIB, MIB)
    fabric.fault = lambda *_: ""
    assert (await ended(lane.write(1, 0, MIB, 2))).status is TransferStatus.DONE
    assert lane.lost.empty()


async def test_one_rail_that_fails_is_left_out_and_comes_back(fabric: Fabric, lane: Lane) -> None:
    grant_all(lane)
    used: dict[str, int] = {}

    def watch(pair: DoubleQp, _: SendRequest) -> str:
        name = pair.pd.device
        used[name] = used.get(name, 0) + 1
        return "drop" if name == "dbl0" and down else ""

    fabric.fault, down = watch, True
    assert (await ended(lane.write(1, 0, 2 * MIB))).status is TransferStatus.DONE
    assert lane.holds(0, 2 * MIB)
    assert used["dbl1"] > used["dbl0"]
    down = False
    async with asyncio.timeout(10):
        chunk = 0
        used.clear()
        while not used.get("dbl0"):
            chunk += 1
            assert (await ended(lane.write(1, 0, MIB, chunk))).status is TransferStatus.DONE
    assert lane.lost.empty()
    assert not [event for event in lane.events if not isinstance(event, ChunkLanded)]


async def test_a_peer_that_does_not_answer_fails_the_write_and_not_the_lane(fabric: Fabric, lane: Lane) -> None:
    grant_all(lane)
    fabric.fault = lambda *_: "drop"
    result = await ended(lane.write(1, 0, MIB))
    assert (result.status, result.error and result.error.reason) == (
        TransferStatus.FAILED,
        ErrorReason.TRANSFER_FAILED,
    )
    fabric.fault = lambda *_: ""
    assert (await ended(lane.write(1, 0, MIB, 1))).status is TransferStatus.DONE


async def test_a_revocation_that_the_sender_cannot_honour_fences_and_spares_the_others(
    fabric: Fabric, lane: Lane
) -> None:
    low = int(lane.pool.ctypes.data)
    doomed = lane.receiver.grant(GrantId(1), u64(0), u64(MIB))
    lane.receiver.grant(GrantId(2), u64(2 * MIB), u64(MIB))
    fabric.fault = lambda _, request: "hold" if request.remote - low < MIB else ""
    held, spared = lane.write(1, 0, MIB), lane.write(2, 2 * MIB, MIB)
    await asyncio.sleep(0.02)
    before = set(fabric.pairs)
    await asyncio.wait_for(doomed.revoke(), 5)
    after = lane.pool[:MIB].copy()
    assert before.isdisjoint(fabric.pairs), "every queue pair was replaced"
    fabric.fault = lambda *_: ""
    fabric.release()
    assert (await ended(held)).error.reason is ErrorReason.GRANT_CLOSED  # type: ignore[union-attr]
    assert (await ended(spared)).status is TransferStatus.DONE
    assert lane.holds(2 * MIB, MIB)
    assert np.array_equal(lane.pool[:MIB], after)
    assert any(isinstance(event, ChunkRefused) and event.grant_id == 1 for event in lane.events)


async def test_a_cancelled_write_that_hangs_is_fenced_and_spares_the_others(fabric: Fabric, lane: Lane) -> None:
    low = int(lane.pool.ctypes.data)
    grant_all(lane)
    fabric.fault = lambda _, request: "hold" if request.remote - low < MIB else ""
    held, spared = lane.write(1, 0, MIB), lane.write(1, 2 * MIB, MIB, 1)
    await asyncio.sleep(0.02)
    await asyncio.wait_for(held.cancel(), 5)
    after = lane.pool[:MIB].copy()
    fabric.fault = lambda *_: ""
    fabric.release()
    assert (await ended(held)).status is TransferStatus.CANCELLED
    assert (await ended(spared)).status is TransferStatus.DONE
    assert np.array_equal(lane.pool[:MIB], after)


async def test_nothing_changes_after_any_of_many_revocations(fabric: Fabric, lane: Lane) -> None:
    random = np.random.default_rng(3)
    pages = np.arange(POOL // (4 * KIB), dtype=np.uint64) * np.uint64(4 * KIB)
    for trial in range(1, 301):
        order = random.permutation(pages)
        lengths = np.full(order.size, 4 * KIB, np.uint64)
        grant = lane.receiver.grant(GrantId(trial), order, lengths)
        transfer = lane.sender.write(order, order, lengths, GrantId(trial), ChunkIndex(0))
        for _ in range(int(random.integers(0, 60))):
            await asyncio.sleep(0)
        await asyncio.wait_for(grant.revoke(), 5)
        after = lane.pool.copy()
        await ended(transfer)
        await asyncio.sleep(0.001)
        assert np.array_equal(lane.pool, after), f"trial {trial}"
        lane.pool[:] = 0


async def test_a_sender_writes_without_remote_rights_and_a_receiver_has_but_one(fabric: Fabric, lane: Lane) -> None:
    rights = {part.access for part in fabric.open if hasattr(part, "access") and part.length > 4096}
    assert rights == {0, 3}, "none for the sender's memory, local and remote writes for the receiver's"
    numbers = {pair.psn for pair in fabric.pairs.values()}
    assert len(numbers) == 4, "every queue pair begins at a random number"
    assert all(pair.init.sq_sig_all == 0 for pair in fabric.pairs.values())


async def test_both_ends_hear_of_a_lost_lane(fabric: Fabric, lane: Lane) -> None:
    grant_all(lane)
    fabric.fault = lambda *_: "hold"
    transfer = lane.write(1, 0, MIB)
    await lane.receiver.close()
    result = await ended(transfer)
    assert (result.status, result.error and result.error.reason) == (TransferStatus.FAILED, ErrorReason.LINK_LOST)
    assert isinstance(await asyncio.wait_for(lane.lost.get(), 5), LaneLost)
    assert not [event for event in lane.events if isinstance(event, LaneLost)], "it closed the lane itself"


async def test_a_device_whose_port_is_down_is_left_out_and_closed(fabric: Fabric) -> None:
    fabric.down = {"dbl0"}
    pool = np.zeros(POOL, np.uint8)
    endpoint = open_endpoint(buffers_of(pool), EndpointSettings(providers=("verbs",), verbs=VERBS))
    await endpoint.start()
    assert [part.name for part in fabric.open if isinstance(part, DoubleContext)] == ["dbl1"]
    assert [offer.name for offer in endpoint.offer()] == ["verbs"]
    await endpoint.close()


async def test_verbs_is_not_offered_if_every_port_is_down(fabric: Fabric) -> None:
    fabric.down = set(fabric.devices)
    pool = np.zeros(POOL, np.uint8)
    endpoint = open_endpoint(buffers_of(pool), EndpointSettings(providers=("verbs",), verbs=VERBS))
    await endpoint.start()
    assert [offer.name for offer in endpoint.offer()] == []
    assert not fabric.open
    await endpoint.close()
