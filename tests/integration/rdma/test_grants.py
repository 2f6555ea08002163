"""Conformance of every provider: nothing outside a granted range changes, and nothing at all after a revocation."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import GrantId
from tandem.rdma import ReceiverLane
from tests.integration.rdma.conftest import MIB, MakePair, Pair, open_whole
from tests.support.rdma.pools import U64, u64

OUT, CLOSED = ErrorReason.OUT_OF_GRANT, ErrorReason.GRANT_CLOSED


async def expect_refusal(pair: Pair, src: U64, dst: U64, lengths: U64, reason: ErrorReason, grant: int = 1) -> None:
    """Writes; both sides must see the refusal, and nothing may change."""
    before = pair.pool.copy()
    result = await pair.write(src, dst, lengths, grant)
    assert (result["status"], result["reason"], result["checksum"]) == ("refused", reason.value, None)
    assert (await pair.refused()).error.reason is reason
    assert np.array_equal(pair.pool, before)


async def expect_good_lane(pair: Pair, lane: ReceiverLane) -> None:
    """The lane still works after what happened."""
    grant = lane.grant(GrantId(99), u64(10), u64(5))
    result = await pair.write(u64(0), u64(10), u64(5), 99)
    assert result["status"] == "done"
    assert (await pair.landed()).bytes == grant.bytes_landed == 5
    assert np.array_equal(pair.pool[10:15], pair.source[:5])


@pytest.mark.parametrize(
    ("dst", "lengths"),
    [
        pytest.param([4096], [4097], id="one byte too long"),
        pytest.param([4095], [4096], id="one byte too early"),
        pytest.param([12288], [8193], id="past the end of the last range"),
        pytest.param([0], [1], id="before the first range"),
        pytest.param([8192], [1], id="between two ranges"),
        pytest.param([4096] * 3 + [3 * MIB], [4096] * 4, id="the last of many"),
        pytest.param([4096] + [12288] * 3, [4096] + [8192] * 3, id="more bytes than granted"),
        pytest.param([2**64 - 1], [4096], id="an offset that overflows"),
        pytest.param([4 * MIB - 1], [4 * MIB], id="outside the memory"),
    ],
)
async def test_a_write_outside_its_grant_is_refused_whole(
    make_pair: MakePair, dst: list[int], lengths: list[int]
) -> None:
    pair = await make_pair()
    lane = await pair.open_lane()
    lane.grant(GrantId(1), u64(12288, 4096), u64(8192, 4096))
    lane.grant(GrantId(2), *map(u64, (0, 4 * MIB)))
    await expect_refusal(pair, u64(*[0] * len(dst)), u64(*dst), u64(*lengths), OUT)
    await expect_good_lane(pair, lane)


async def test_a_large_refused_write_changes_nothing(make_pair: MakePair) -> None:
    pair = await make_pair(64 * MIB)
    lane = await pair.open_lane()
    lane.grant(GrantId(1), u64(0), u64(64 * MIB - 1))
    await expect_refusal(pair, u64(0), u64(0), u64(64 * MIB), OUT)
    await expect_good_lane(pair, lane)


async def test_ranges_of_a_grant_that_touch_are_one(make_pair: MakePair) -> None:
    pair = await make_pair()
    lane = await pair.open_lane()
    lane.grant(GrantId(1), u64(8192, 0, 4096), u64(4096, 4096, 4096))
    assert (await pair.write(u64(0), u64(100), u64(12000), 1))["status"] == "done"
    assert (await pair.landed()).bytes == 12000


async def test_a_closed_or_unknown_grant_refuses(make_pair: MakePair) -> None:
    pair = await make_pair()
    lane = await pair.open_lane()
    grant = open_whole(lane, pair.pool)
    other = await pair.open_lane()
    open_whole(other, pair.pool, 5)
    await grant.revoke()
    await grant.revoke()
    await pair.sender.call("close_lane", lane=1)
    await pair.event()  # the second lane is lost
    before = pair.pool.copy()
    for key, number in ((101, 1), (102, 4), (103, 5)):  # revoked, never granted, granted on another lane
        arrays = {"src": [0], "dst": [0], "lengths": [100]}
        await pair.sender.call("write", key=key, grant=number, lane=0, **arrays)
        assert (await pair.wait(key))["reason"] == CLOSED.value
        assert (await pair.refused()).grant_id == number
    assert np.array_equal(pair.pool, before)


async def test_no_byte_lands_after_a_revocation(make_pair: MakePair) -> None:
    pair = await make_pair(128 * MIB)
    lane = await pair.open_lane()
    pages = np.random.default_rng(1).permutation(128 * MIB // 4096).astype(np.uint64) * np.uint64(4096)
    lengths = np.full(pages.size, 4096, np.uint64)
    for attempt in range(3):
        grant = lane.grant(GrantId(attempt + 1), pages, lengths)
        key = await pair.begin(pages, pages, lengths, attempt + 1)
        await pair.until_landing(grant)
        await grant.revoke()
        landed, after = grant.bytes_landed, pair.pool.copy()
        result = await pair.wait(key)
        assert (result["status"], result["reason"]) == ("refused", CLOSED.value)
        assert (await pair.refused()).error.reason is CLOSED
        assert 0 < landed < 128 * MIB
        assert grant.bytes_landed == landed
        assert np.array_equal(pair.pool, after)
        pair.pool[:] = 0
    await expect_good_lane(pair, lane)


async def test_closing_the_lane_revokes(make_pair: MakePair) -> None:
    pair = await make_pair(128 * MIB)
    lane = await pair.open_lane()
    grant = open_whole(lane, pair.pool)
    key = await pair.begin(u64(0), u64(0), u64(128 * MIB), 1)
    await pair.until_landing(grant)
    await lane.close()
    after = pair.pool.copy()
    await asyncio.wait_for(grant.revoke(), 1)
    assert (await pair.wait(key))["reason"] == ErrorReason.LINK_LOST.value
    assert np.array_equal(pair.pool, after)
    with pytest.raises(TandemError, match="LINK_LOST"):
        open_whole(lane, pair.pool, 2)


@pytest.mark.parametrize(
    ("offsets", "lengths"),
    [([4 * MIB], [1]), ([0], [4 * MIB + 1]), ([2**64 - 1], [2]), ([0, 10], [11, 5]), ([0, 1], [1])],
)
async def test_bad_grants_are_refused(make_pair: MakePair, offsets: list[int], lengths: list[int]) -> None:
    pair = await make_pair()
    lane = await pair.open_lane()
    with pytest.raises(TandemError, match="INVALID_ARGUMENT"):
        lane.grant(GrantId(1), u64(*offsets), u64(*lengths))
    open_whole(lane, pair.pool)
    with pytest.raises(TandemError, match="INVALID_ARGUMENT"):
        open_whole(lane, pair.pool)


@pytest.mark.parametrize(
    ("src", "dst", "lengths"),
    [([4 * MIB], [0], [1]), ([2**64 - 1], [0], [2]), ([0], [0, 1], [1]), ([0], [0], [4 * MIB + 1])],
)
async def test_bad_writes_are_refused_at_once(
    make_pair: MakePair, src: list[int], dst: list[int], lengths: list[int]
) -> None:
    pair = await make_pair()
    lane = await pair.open_lane()
    with pytest.raises(TandemError) as caught:
        await pair.begin(u64(*src), u64(*dst), u64(*lengths), 1)
    assert caught.value.reason is ErrorReason.INVALID_ARGUMENT
    await expect_good_lane(pair, lane)
