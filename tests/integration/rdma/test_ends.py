"""Conformance of every provider: cancellation, death, stale tokens, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import threading

import numpy as np
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import GrantId
from tandem.rdma import FaultPlan, LaneLost
from tests.integration.rdma.conftest import MIB, MakePair, open_whole
from tests.support.rdma.pools import u64
from tests.support.rdma.sender import offer_of, plain

LOST = ErrorReason.LINK_LOST.value


async def test_a_sender_that_dies_in_the_middle(make_pair: MakePair) -> None:
    pair = await make_pair(128 * MIB)
    lane = await pair.open_lane()
    grant = lane.grant(GrantId(1), u64(MIB), u64(100 * MIB))
    await pair.begin(u64(0), u64(MIB), u64(100 * MIB), 1)
    await pair.until_landing(grant)
    await pair.sender.kill()
    event = await pair.event()
    assert isinstance(event, LaneLost)
    assert event.error.reason is ErrorReason.LINK_LOST
    after = pair.pool.copy()
    await asyncio.wait_for(grant.revoke(), 1)
    assert grant.bytes_landed < 100 * MIB
    assert not after[:MIB].any()
    assert not after[101 * MIB :].any()
    assert pair.events.empty()
    assert np.array_equal(pair.pool, after)
    with pytest.raises(TandemError, match="LINK_LOST"):
        open_whole(lane, pair.pool, 2)


async def test_a_receiver_that_goes_away_in_the_middle(make_pair: MakePair) -> None:
    pair = await make_pair(8 * MIB, faults=FaultPlan(stall_after_bytes=MIB))
    grant = open_whole(await pair.open_lane(), pair.pool)
    keys = [await pair.begin(u64(0), u64(0), u64(8 * MIB), 1, chunk) for chunk in range(3)]
    await pair.until_landing(grant)
    await pair.receiver.close()
    for key in keys:
        result = await pair.wait(key)
        assert (result["status"], result["reason"]) == ("failed", LOST)
    assert await pair.sender.call("lost") == LOST
    with pytest.raises(TandemError, match="LINK_LOST"):
        await pair.begin(u64(0), u64(0), u64(1), 1)


async def test_a_token_opens_one_lane_once(make_pair: MakePair) -> None:
    pair = await make_pair()
    await pair.open_lane()
    with pytest.raises(TandemError, match="LINK_LOST"):
        await pair.receiver.connect(offer_of(pair.answer), pair.events.put_nowait)
    forged = {**pair.answer, "token": bytes(16).hex()}
    with pytest.raises(TandemError, match="LINK_LOST"):
        await pair.receiver.connect(offer_of(forged), pair.events.put_nowait)


async def test_an_answer_of_an_earlier_life_is_refused(make_pair: MakePair) -> None:
    pair = await make_pair(connect_timeout_ms=2_000)
    offers = [plain(offer) for offer in pair.receiver.offer()]
    stale = await pair.sender.call("accept", offers=offers)
    await pair.sender.call("close")
    with pytest.raises(TandemError, match="LINK_LOST"):
        await pair.receiver.connect(offer_of(stale), pair.events.put_nowait)
    successor = await make_pair()
    live = await successor.sender.call("accept", offers=offers)
    mixed = {**live, "token": stale["token"]}  # the new life listens where the old one did
    with pytest.raises(TandemError, match="LINK_LOST"):
        await pair.receiver.connect(offer_of(mixed), pair.events.put_nowait)


async def test_writes_before_the_lane_is_open_wait(make_pair: MakePair) -> None:
    pair = await make_pair()
    offers = [plain(offer) for offer in pair.receiver.offer()]
    answer = await pair.sender.call("accept", offers=offers)
    kept, dropped = [await pair.begin(u64(0), u64(0), u64(100), 1, chunk) for chunk in range(2)]
    await pair.sender.call("cancel", key=dropped)
    assert (await pair.wait(dropped))["status"] == "cancelled"
    lane = await pair.receiver.connect(offer_of(answer), pair.events.put_nowait)
    open_whole(lane, pair.pool)
    result = await pair.wait(kept)
    assert result["status"] in ("done", "refused")  # refused if it came before the grant
    assert (await pair.event()).grant_id == 1  # type: ignore[union-attr]


async def test_a_cancelled_write_stops_and_the_lane_goes_on(make_pair: MakePair) -> None:
    pair = await make_pair(128 * MIB, fence_ms=20_000)
    grant = open_whole(await pair.open_lane(), pair.pool)
    pages = np.random.default_rng(1).permutation(128 * MIB // 4096).astype(np.uint64) * np.uint64(4096)
    lengths = np.full(pages.size, 4096, np.uint64)
    key = await pair.begin(pages, pages, lengths, 1)
    queued = await pair.begin(u64(0), u64(0), u64(1), 1)
    await pair.until_landing(grant)
    await pair.sender.call("cancel", key=key)
    await pair.sender.call("cancel", key=key)
    await pair.sender.call("scribble")  # the source is free to change now
    result = await pair.wait(key)
    assert (result["status"], result["checksum"]) == ("cancelled", None)
    assert result["bytes"] < 128 * MIB
    assert (await pair.wait(queued))["status"] == "done"
    await pair.landed()  # of the queued one; a cancelled write is never reported as landed
    done = await pair.write(u64(7), u64(9), u64(MIB), 1)
    landed = await pair.landed()
    assert landed.checksum == done["checksum"]
    changed = pair.pool[MIB + 9 :]
    was = pair.source[MIB + 9 :]
    assert not ((changed != 0) & (changed != was)).any(), "what landed is what the source held before"


async def test_cancelling_against_a_stuck_receiver_ends(make_pair: MakePair) -> None:
    pair = await make_pair(64 * MIB, faults=FaultPlan(stall_after_bytes=MIB))
    grant = open_whole(await pair.open_lane(), pair.pool)
    key = await pair.begin(u64(0), u64(0), u64(64 * MIB), 1)
    await pair.until_landing(grant)
    await asyncio.wait_for(pair.sender.call("cancel", key=key), 10)  # by fence, if a frame is half sent
    assert (await pair.wait(key))["status"] == "cancelled"
    await asyncio.wait_for(pair.sender.call("close_lane"), 10)
    assert isinstance(await pair.event(), LaneLost)


async def test_closing_the_sender_cancels(make_pair: MakePair) -> None:
    pair = await make_pair(64 * MIB)
    grant = open_whole(await pair.open_lane(), pair.pool)
    keys = [await pair.begin(u64(0), u64(0), u64(64 * MIB), 1, chunk) for chunk in range(4)]
    await pair.until_landing(grant)
    await pair.sender.call("close_lane")
    await pair.sender.call("close_lane")
    assert {(await pair.wait(key))["status"] for key in keys[1:]} <= {"cancelled", "done"}
    assert (await pair.wait(keys[3]))["status"] == "cancelled"
    while not isinstance(event := await pair.event(), LaneLost):
        pass
    assert event.error.reason is ErrorReason.LINK_LOST


async def test_nothing_is_left_behind(make_pair: MakePair) -> None:
    pair = await make_pair(16 * MIB, tcp_streams=3)
    await (await pair.open_lane()).close()

    def used() -> tuple[int, set[str]]:
        return len(os.listdir("/proc/self/fd")), {thread.name for thread in threading.enumerate()}

    before = used()
    for attempt in range(5):
        lane = await pair.open_lane()
        grant = open_whole(lane, pair.pool)
        await pair.begin(u64(0), u64(0), u64(16 * MIB), 1)
        await pair.until_landing(grant)
        if attempt % 2:
            await pair.sender.call("close_lane")
            while not isinstance(await pair.event(), LaneLost):
                pass
        await lane.close()
    if pair.provider != "fake":
        assert used() == before
