"""A receiver in this process and a sender elsewhere, over each provider in turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tandem.core.ids import GrantId
from tandem.rdma import (
    ChunkLanded,
    ChunkRefused,
    Direction,
    Endpoint,
    FaultPlan,
    Grant,
    LaneEvent,
    ReceiverLane,
    open_endpoint,
)
from tests.support.rdma.double import Fabric, use_double
from tests.support.rdma.pools import U64, Bytes, buffers_of, random_pool
from tests.support.rdma.sender import LocalSender, ProcessSender, Sender, SenderSide, offer_of, plain, settings_of
from tests.support.rdma.verbs_lane import Lane, open_lane

MIB = 1 << 20
SEED = 11
VERBS_BYTES = 64 * MIB
"""Largest pool for verbs: an emulated device in an emulated machine moves some 60 MiB/s."""
SMALL_PIECES = {"piece_bytes": 256 << 10, "receive_depth": 8, "window_bytes": 2 << 20}
"""For verbs: a few MiB are many pieces, and more than a receiver takes that does not look."""


@dataclass
class Pair:
    """Both sides, and one lane between them."""

    provider: str
    source: Bytes
    """What the sender's pool holds."""
    pool: Bytes
    receiver: Endpoint
    sender: Sender
    events: asyncio.Queue[LaneEvent] = field(default_factory=asyncio.Queue)
    answer: dict[str, Any] = field(default_factory=dict)
    _keys: int = 0

    async def open_lane(self) -> ReceiverLane:
        """Another lane."""
        offers = [plain(offer) for offer in self.receiver.offer()]
        self.answer = await self.sender.call("accept", offers=offers)
        return await self.receiver.connect(offer_of(self.answer), self.events.put_nowait)

    async def begin(self, src: U64, dst: U64, lengths: U64, grant: int, chunk: int = 0) -> int:
        """Begins a write; returns its key."""
        self._keys += 1
        arrays = {"src": src.tolist(), "dst": dst.tolist(), "lengths": lengths.tolist()}
        await self.sender.call("write", key=self._keys, grant=grant, chunk=chunk, **arrays)
        return self._keys

    async def write(self, src: U64, dst: U64, lengths: U64, grant: int, chunk: int = 0) -> dict[str, Any]:
        """Writes; returns the sender's result."""
        return await self.wait(await self.begin(src, dst, lengths, grant, chunk))

    async def wait(self, key: int) -> dict[str, Any]:
        """Waits for the sender's result."""
        result: dict[str, Any] = await self.sender.call("wait", key=key)
        return result

    async def event(self) -> LaneEvent:
        """The receiver's next event."""
        return await asyncio.wait_for(self.events.get(), 60)

    async def landed(self) -> ChunkLanded:
        """The receiver's next event, which must be this."""
        event = await self.event()
        assert isinstance(event, ChunkLanded), event
        return event

    async def refused(self) -> ChunkRefused:
        """The receiver's next event, which must be this."""
        event = await self.event()
        assert isinstance(event, ChunkRefused), event
        return event

    async def until_landing(self, grant: Grant) -> None:
        """Waits until the first byte of a grant has landed."""
        async with asyncio.timeout(60):
            while not grant.bytes_landed:  # noqa: ASYNC110 - landing makes no event before the chunk is whole
                await asyncio.sleep(0)


MakePair = Callable[..., Awaitable[Pair]]


POSTING = {"double": "reference", "verbs": "batch", "verbs-reference": "reference"}
"""What stands for the provider verbs here, and how each posts; the double has no C structures to chain."""


@pytest.fixture(
    params=[
        *("fake", "tcp", "cma", "double"),
        pytest.param("verbs", marks=pytest.mark.rdma),
        pytest.param("verbs-reference", marks=[pytest.mark.rdma, pytest.mark.long]),  # what the double has always
    ]
)
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every test runs on each of them; `double` is verbs on a device in software, within this process."""
    name = str(request.param)
    if name != "double":
        yield name
        return
    with use_double(monkeypatch) as fabric:
        yield name
    assert not fabric.open, "something of the device was not closed"


@pytest.fixture
async def make_pair(provider: str) -> AsyncIterator[MakePair]:
    """Makes pairs, and closes them."""
    made: list[Pair] = []

    async def make(pool_bytes: int = 4 * MIB, faults: FaultPlan | None = None, **settings: Any) -> Pair:
        name = "verbs" if provider in POSTING else provider
        verbs = {**SMALL_PIECES, "posting": POSTING.get(provider, "auto")}
        shared = {"providers": [name], "fence_ms": 300, "verbs": verbs, **settings}
        if provider in ("fake", "double"):
            side = SenderSide(pool_bytes, SEED, shared)
            await side.start()
            sender: Sender = LocalSender(side)
        else:
            sender = await ProcessSender.start(pool_bytes, SEED, shared)
        pool = np.zeros(pool_bytes, np.uint8)
        mine = settings_of(shared, faults=faults, direction=Direction.RECEIVE)
        receiver = open_endpoint(buffers_of(pool), mine)
        await receiver.start()
        pair = Pair(provider, random_pool(pool_bytes, SEED), pool, receiver, sender)
        made.append(pair)
        return pair

    yield make
    for pair in made:
        await pair.receiver.close()
        await pair.sender.close()


def whole(pool: Bytes) -> tuple[U64, U64]:
    """Offsets and lengths of a grant over a whole pool."""
    return np.zeros(1, np.uint64), np.array([pool.size], np.uint64)


def open_whole(lane: ReceiverLane, pool: Bytes, grant_id: int = 1) -> Grant:
    """A grant over a whole pool."""
    return lane.grant(GrantId(grant_id), *whole(pool))


@pytest.fixture
def fabric(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fabric]:
    """The devices; nothing of them may be left at the end."""
    with use_double(monkeypatch) as made:
        yield made
    assert not made.open


@pytest.fixture
async def lane(fabric: Fabric) -> AsyncIterator[Lane]:
    """A lane over two devices."""
    made = await open_lane()
    yield made
    fabric.fault = lambda *_: ""
    fabric.release()
    for end in reversed(made.ends):
        await end.close()
