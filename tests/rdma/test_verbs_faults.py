"""What real verbs do when they are broken on purpose: a clear error soon, and the lane or its neighbours go on."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tandem.core.errors import ErrorReason
from tandem.core.ids import GrantId
from tandem.rdma import ChunkLanded, Direction, Endpoint, LaneEvent, LaneLost, ReceiverLane, open_endpoint
from tests.support.rdma.pools import Bytes, buffers_of, random_pool, u64
from tests.support.rdma.sender import ProcessSender, offer_of, plain, settings_of

pytestmark = pytest.mark.rdma

POOL = 4 << 20
PAGES = 256
"""Pages of 4 KiB in a write that is taken back."""
SOON_S = 5
"""An error has to come within this time, on an emulated processor."""
SHARED: dict[str, Any] = {
    "providers": ["verbs"],
    "fence_ms": 500,
    "connect_timeout_ms": 3_000,
    "verbs": {"piece_bytes": 32 << 10, "receive_depth": 8, "window_bytes": 1 << 20},
}


@dataclass
class Bench:
    """A receiver here, and a sender elsewhere."""

    pool: Bytes
    receiver: Endpoint
    sender: ProcessSender
    events: asyncio.Queue[LaneEvent] = field(default_factory=asyncio.Queue)
    _key: int = 0

    async def lane(self) -> ReceiverLane:
        """Another lane, with a grant of everything."""
        answer = await self.sender.call("accept", offers=[plain(offer) for offer in self.receiver.offer()])
        lane = await self.receiver.connect(offer_of(answer), self.events.put_nowait)
        lane.grant(GrantId(1), u64(0), u64(POOL))
        return lane

    async def begin(self, count: int = POOL, lane: int = -1) -> int:
        """Begins a write of the pool's first bytes."""
        self._key += 1
        arrays = {"src": [0], "dst": [0], "lengths": [count]}
        await self.sender.call("write", key=self._key, grant=1, lane=lane, **arrays)
        return self._key

    async def end(self, key: int) -> dict[str, Any]:
        """Its end, which comes soon."""
        result: dict[str, Any] = await asyncio.wait_for(self.sender.call("wait", key=key), SOON_S)
        return result

    async def expect_failed(self, reason: str = "TRANSFER_FAILED") -> None:
        """A write over the newest lane fails soon."""
        result = await self.end(await self.begin())
        assert (result["status"], result["reason"]) == ("failed", reason)

    async def expect_good(self, lane: int = -1) -> None:
        """A lane works."""
        self.pool[:] = 0
        assert (await self.end(await self.begin(1 << 20, lane)))["status"] == "done"
        while not isinstance(await asyncio.wait_for(self.events.get(), SOON_S), ChunkLanded):
            pass
        assert np.array_equal(self.pool[: 1 << 20], random_pool(POOL, 1)[: 1 << 20])


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """Both ends, without a lane."""
    pool = np.zeros(POOL, np.uint8)
    receiver = open_endpoint(buffers_of(pool), settings_of(SHARED, direction=Direction.RECEIVE))
    await receiver.start()
    made = Bench(pool, receiver, await ProcessSender.start(POOL, 1, SHARED))
    yield made
    await made.receiver.close()
    await made.sender.close()


@pytest.mark.parametrize("what", ["rkey", "end"])
async def test_a_write_that_the_device_refuses_fails_alone(bench: Bench, what: str) -> None:
    """A key that the receiver never gave, and an address past the end of its last buffer."""
    await bench.lane()
    neighbour = bench.events
    await bench.lane()
    await bench.sender.call("tamper", what=what)
    await bench.expect_failed()
    assert neighbour.empty()
    await bench.expect_good(lane=0)


async def test_more_tags_than_receive_requests_break_no_lane(bench: Bench) -> None:
    """The receiver does not look for a while, and the sender believes in more room than there is."""
    lane = await bench.lane()
    await bench.sender.call("tamper", what="credit")
    key = await bench.begin()
    time_to_run_out = time.monotonic() + 1.0
    while time.monotonic() < time_to_run_out:  # on purpose: this loop takes no completions meanwhile
        sum(range(10_000))
    assert (await asyncio.wait_for(bench.sender.call("wait", key=key), 60))["status"] == "done"
    assert any(rail.life >= 2 for rail in lane._rails), "there was room for all of it"  # type: ignore[attr-defined]
    await bench.expect_good()


async def test_a_queue_pair_that_the_peer_destroys_is_made_anew(bench: Bench) -> None:
    lane = await bench.lane()
    for rail in lane._rails:  # type: ignore[attr-defined]
        rail.renew()
    await bench.expect_good()
    for rail in lane._rails:  # type: ignore[attr-defined]
        assert rail.life >= 2


async def test_a_killed_peer_is_noticed_and_others_are_served(bench: Bench) -> None:
    await bench.lane()
    other = await ProcessSender.start(POOL, 1, SHARED)
    await bench.begin()
    await bench.sender.kill()
    while not isinstance(await asyncio.wait_for(bench.events.get(), SOON_S), LaneLost):
        pass
    bench.sender = other
    await bench.lane()
    await bench.expect_good()


needs_cable = pytest.mark.skipif(not Path("/sys/class/net/cable0").exists(), reason="needs the guest's cable")


@asynccontextmanager
async def cable(broken: str, mended: str) -> AsyncIterator[None]:
    """The guest's cable, broken by a command for each of its ends and mended by another."""
    await _at_both_ends(broken)
    try:
        yield
    finally:
        await _at_both_ends(mended)


async def _at_both_ends(command: str) -> None:
    for end in ("cable0", "cable1"):
        process = await asyncio.create_subprocess_exec(*command.format(end).split())
        assert await process.wait() == 0


@needs_cable
async def test_a_cable_that_carries_nothing_fails_writes_and_works_again(bench: Bench) -> None:
    await bench.lane()
    await bench.expect_good()
    loss = "tc qdisc replace dev {} root netem loss "
    async with cable(loss + "100%", loss + "0%"):
        await bench.expect_failed()
    async with asyncio.timeout(60):
        while (await bench.end(await bench.begin(1 << 20)))["status"] != "done":
            pass
    await bench.expect_good()


@needs_cable
async def test_links_that_stay_down_end_the_lane_and_another_works_when_they_are_up(bench: Bench) -> None:
    """Unlike a cable that loses everything: both ends know, and wait for their ports as long as settings allow."""
    await bench.lane()
    await bench.expect_good()
    async with cable("ip link set {} down", "ip link set {} up"):
        await bench.expect_failed("LINK_LOST")
        while not isinstance(event := await asyncio.wait_for(bench.events.get(), SOON_S), LaneLost):
            pass
        assert event.error.reason is ErrorReason.LINK_LOST
    await bench.lane()
    await bench.expect_good()


@pytest.mark.timeout(900)  # beside other work an emulated processor takes ten minutes for a thousand
@pytest.mark.parametrize("trials", [150, pytest.param(1_000, marks=pytest.mark.long)])
async def test_nothing_changes_after_any_of_many_revocations(bench: Bench, trials: int) -> None:
    """A sender that goes on writing, and a receiver that takes its grant back at some moment."""
    lane = await bench.lane()
    random = np.random.default_rng(1)
    pages = np.arange(PAGES, dtype=np.uint64) * np.uint64(4096)
    lengths = np.full(PAGES, 4096, np.uint64)
    target = bench.pool[: PAGES * 4096]
    ends = Counter[str]()
    for trial in range(2, trials + 2):
        order = random.permutation(pages)
        grant = lane.grant(GrantId(trial), order, lengths)
        arrays = {"src": order.tolist(), "dst": order.tolist(), "lengths": lengths.tolist()}
        await bench.sender.call("write", key=trial, grant=trial, **arrays)
        for _ in range(int(random.integers(0, 5))):
            await asyncio.sleep(0)
        await grant.revoke()
        after = target.copy()
        end = await bench.end(trial)
        assert np.array_equal(target, after), f"trial {trial}: {end}"
        assert end["status"] in ("refused", "done"), f"trial {trial}: {end}"
        ends[end["status"]] += 1
        target[:] = 0
    assert ends["refused"] > trials / 10, f"too few revocations came in the middle of a write: {ends}"
