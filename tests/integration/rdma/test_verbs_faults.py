"""What a verbs lane does when its devices fail, on a device in software that fails as it is told."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time

import numpy as np
import pytest

from tandem.core.errors import ErrorReason
from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma import (
    ChunkLanded,
    ChunkRefused,
    EndpointSettings,
    FaultPlan,
    LaneLost,
    TransferStatus,
    open_endpoint,
)
from tests.support.rdma.double import DoubleContext, DoubleError, DoubleQp, Fabric, SendRequest
from tests.support.rdma.pools import buffers_of, u64
from tests.support.rdma.verbs_lane import KIB, MIB, PIECE, POOL, VERBS, Lane, close, ended, grant_all, open_lane, until


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


async def test_a_revocation_waits_for_queue_pairs_that_another_fences(fabric: Fabric, lane: Lane) -> None:
    """A queue pair in the error state may still have a packet in hand: only its end is proof."""
    fabric.flushes = False
    rail = lane.receiver._rails[0]  # type: ignore[attr-defined]
    pair = rail.queue_pair
    rail.renew()
    await until(lambda: rail.queue_pair is None)
    await asyncio.wait_for(rail.fence(), 5)
    assert pair.destroyed.is_set()
    fabric.flushes = True


async def test_pieces_are_slow_to_land_if_a_fault_says_so(fabric: Fabric) -> None:
    lane = await open_lane(faults=FaultPlan(pace_ms=30))
    grant_all(lane)
    began = time.monotonic()
    assert (await ended(lane.write(1, 0, 4 * PIECE))).status is TransferStatus.DONE
    assert not lane.events
    await until(lambda: bool(lane.events))
    assert time.monotonic() - began > 4 * 0.03
    assert isinstance(lane.events[0], ChunkLanded)
    await close(lane)


@pytest.mark.parametrize("what", ["revoke", "cancel", "go on"])
async def test_what_a_broken_rail_sent_does_not_land_later(fabric: Fabric, lane: Lane, what: str) -> None:
    """Its packets are on their way when the sender has given them up, and its peer's queue pair is as good as new."""
    grant = lane.receiver.grant(GrantId(1), u64(0), u64(MIB))
    fabric.fault = lambda *_: "" if fabric.late else "late"
    transfer = lane.write(1, 0, MIB)
    await until(lambda: bool(fabric.late))
    if what == "revoke":
        await asyncio.wait_for(grant.revoke(), 5)
    elif what == "cancel":
        await asyncio.wait_for(transfer.cancel(), 5)
    else:
        assert (await ended(transfer)).status is TransferStatus.DONE
        assert lane.holds(0, MIB)
    lane.pool[:] = 0
    assert not fabric.deliver()
    assert not lane.pool.any()


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


async def test_control_messages_do_not_wait_for_acknowledgements(lane: Lane) -> None:
    """Each grant that is taken back took 40 ms otherwise: TCP holds a second small message back."""
    for end in (lane.sender, lane.receiver):
        sock = end._control._sock  # type: ignore[attr-defined]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


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


@pytest.mark.parametrize("depth", [1, VERBS.receive_depth], ids=["sender", "receiver"])
@pytest.mark.parametrize("step", ["__post_init__", "to_rts"])
async def test_a_rail_that_can_not_be_made_twice_in_a_row_comes_back(
    fabric: Fabric, lane: Lane, monkeypatch: pytest.MonkeyPatch, step: str, depth: int
) -> None:
    """Its queue pair is refused, or can't be connected, at either end."""
    monkeypatch.setattr("tandem.rdma.verbs.receiver._AGAIN_S", 0.01)
    grant_all(lane)
    refusals, work = [step] * 2, getattr(DoubleQp, step)

    def refuse(pair: DoubleQp, *arguments: object) -> None:
        if pair.pd.device == "dbl0" and pair.init.cap.max_recv_wr == depth and refusals:
            refusals.pop()
            raise DoubleError("not now")
        work(pair, *arguments)

    monkeypatch.setattr(DoubleQp, step, refuse)
    fabric.fault = lambda pair, _: "drop" if pair.pd.device == "dbl0" else ""
    assert (await ended(lane.write(1, 0, MIB))).status is TransferStatus.DONE
    await until(lambda: all(rail.rail.up for rail in lane.sender._rails))  # type: ignore[attr-defined]
    assert not refusals
    assert lane.lost.empty()
