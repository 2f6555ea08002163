"""Conformance of every provider: the bytes arrive, all of them, where they belong, and both sides can prove it."""

from __future__ import annotations

import numpy as np
import pytest

from tandem.rdma import FaultPlan, TransferStatus
from tests.integration.rdma.conftest import MIB, POSTING, VERBS_BYTES, MakePair, Pair, open_whole
from tests.support.rdma.pools import U64, moved, u64
from tests.support.rdma.settings import LARGEST_BYTES

DONE = TransferStatus.DONE.value


def scattered(pool_bytes: int, page_bytes: int, pages: int, seed: int) -> U64:
    """Offsets of some pages, in a random order."""
    order = np.random.default_rng(seed).permutation(pool_bytes // page_bytes)[:pages]
    return order.astype(np.uint64) * np.uint64(page_bytes)


async def write_and_check(pair: Pair, src: U64, dst: U64, lengths: U64, chunk: int) -> None:
    """Writes under grant 1 and checks everything that both sides say."""
    expected = moved(pair.source, pair.pool, src, dst, lengths)
    result = await pair.write(src, dst, lengths, 1, chunk)
    landed = await pair.landed()
    total = int(lengths.sum())
    assert (result["status"], result["bytes"], result["reason"]) == (DONE, total, None)
    assert (landed.grant_id, landed.chunk, landed.bytes) == (1, chunk, total)
    assert landed.checksum == result["checksum"]
    assert np.array_equal(pair.pool, expected)


async def test_any_size_contiguous_or_scattered(make_pair: MakePair) -> None:
    pair = await make_pair(8 * MIB)
    lane = await pair.open_lane()
    grant = open_whole(lane, pair.pool)
    total = chunk = 0
    for size in (1, 15, 4095, 4096, 65537, MIB + 3, 6 * MIB + 1):
        await write_and_check(pair, u64(3), u64(MIB - 1), u64(size), chunk)
        total, chunk = total + size, chunk + 1
    for page_bytes, pages in ((1, 50), (512, 4000), (4096, 2000), (32768, 200), (MIB, 7)):
        src, dst = (scattered(8 * MIB, page_bytes, pages, seed) for seed in (chunk, chunk + 100))
        await write_and_check(pair, src, dst, np.full(pages, page_bytes, np.uint64), chunk)
        total, chunk = total + pages * page_bytes, chunk + 1
    assert grant.bytes_landed == total


@pytest.mark.parametrize("checksum", [True, False])
async def test_thousands_of_odd_ranges_across_buffers(make_pair: MakePair, checksum: bool) -> None:
    pair = await make_pair(8 * MIB, checksum=checksum)
    open_whole(await pair.open_lane(), pair.pool)
    random = np.random.default_rng(5)
    lengths = random.integers(0, 150, 20_000).astype(np.uint64)
    dst = random.permutation(20_000).astype(np.uint64) * np.uint64(157)  # room for one each, in the first 3 MiB
    lengths[100], dst[100] = 2 * MIB, 3 * MIB + 555
    src = random.integers(0, 6 * MIB, 20_000).astype(np.uint64)
    expected = moved(pair.source, pair.pool, src, dst, lengths)
    result = await pair.write(src, dst, lengths, 1)
    landed = await pair.landed()
    assert result["status"] == DONE
    assert landed.checksum == result["checksum"]
    assert (landed.checksum is not None) == checksum
    assert np.array_equal(pair.pool, expected)


async def test_an_empty_write_lands_at_once(make_pair: MakePair) -> None:
    pair = await make_pair()
    open_whole(await pair.open_lane(), pair.pool)
    await write_and_check(pair, u64(), u64(), u64(), 0)
    await write_and_check(pair, u64(5, 6), u64(7, 9), u64(0, 1), 1)


async def test_a_large_write(make_pair: MakePair, provider: str) -> None:
    size = min(LARGEST_BYTES, VERBS_BYTES) if provider in POSTING else LARGEST_BYTES
    pair = await make_pair(size)
    open_whole(await pair.open_lane(), pair.pool)
    result = await pair.write(u64(0), u64(0), u64(size), 1)
    assert result["status"] == DONE
    assert (await pair.landed()).checksum == result["checksum"]
    assert np.array_equal(pair.pool, pair.source)


@pytest.mark.parametrize("streams", [1, 4])
async def test_concurrent_writes_do_not_mix(make_pair: MakePair, streams: int) -> None:
    pair = await make_pair(8 * MIB, tcp_streams=streams)
    lanes = [await pair.open_lane() for _ in range(2)]
    slot = 8 * MIB // 32
    keys = []
    for n in range(32):
        offset = u64(n * slot)
        lanes[-1].grant(n + 1, offset, u64(slot))
        keys.append(await pair.begin(u64((31 - n) * slot), offset, u64(slot), n + 1, n))
    results = [await pair.wait(key) for key in keys]
    landed = {event.grant_id: event for event in [await pair.landed() for _ in keys]}
    assert [result["status"] for result in results] == [DONE] * 32
    assert [landed[n + 1].checksum for n in range(32)] == [result["checksum"] for result in results]
    assert np.array_equal(pair.pool.reshape(32, slot), pair.source.reshape(32, slot)[::-1])


async def test_a_flipped_byte_shows_in_the_checksums(make_pair: MakePair) -> None:
    pair = await make_pair(faults=FaultPlan(flip_byte_of_chunk=3, flip_times=1))
    open_whole(await pair.open_lane(), pair.pool)
    ranges = (u64(0, 2 * MIB), u64(MIB, 64), u64(4096, 70_000))
    agreed = []
    for chunk in (2, 3, 3):
        result = await pair.write(*ranges, 1, chunk)
        agreed.append((await pair.landed()).checksum == result["checksum"])
        assert result["status"] == DONE
    assert agreed == [True, False, True]
