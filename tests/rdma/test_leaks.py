"""What RDMA writes leave behind: nothing. benchmarks/verbs_leaks.py does the same at length."""

from __future__ import annotations

import pytest

from benchmarks.verbs_leaks import GROWTH_BYTES, left_behind, memory_growth

pytestmark = pytest.mark.rdma

REQUESTS = 200_000
"""A fifth is for warming up: 32 bytes lost by each of the rest are 4.9 MiB."""
TRANSFERS = 200


@pytest.mark.parametrize("posting", ["batch", pytest.param("reference", marks=pytest.mark.long)])
async def test_memory_does_not_grow_with_work_requests(posting: str) -> None:
    assert await memory_growth(posting, REQUESTS, ()) <= GROWTH_BYTES


async def test_transfers_and_lanes_leave_nothing_behind() -> None:
    assert await left_behind(TRANSFERS, ()) == {}
