"""A verbs lane between two endpoints of this process, over devices in software that fail as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma import (
    Direction,
    Endpoint,
    EndpointSettings,
    LaneEvent,
    ReceiverLane,
    SenderLane,
    Transfer,
    TransferResult,
    VerbsSettings,
    open_endpoint,
)
from tests.support.rdma.pools import Bytes, buffers_of, random_pool, u64

KIB, MIB = 1 << 10, 1 << 20
POOL = 4 * MIB
PIECE = 64 * KIB
VERBS = VerbsSettings(piece_bytes=PIECE, window_bytes=4 * PIECE, receive_depth=8)


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


async def open_lane(senders: tuple[str, ...] = (), receivers: tuple[str, ...] = (), **others: Any) -> Lane:
    """A lane over these devices of each end, or over all."""
    source, pool = random_pool(POOL, 5), np.zeros(POOL, np.uint8)
    ends = []
    for memory, direction, devices in ((source, Direction.SEND, senders), (pool, Direction.RECEIVE, receivers)):
        verbs = replace(VERBS, devices=devices)
        settings = EndpointSettings(("verbs",), direction=direction, verbs=verbs, **{"fence_ms": 100, **others})
        end = open_endpoint(buffers_of(memory), settings)
        await end.start()
        ends.append(end)
    events: list[LaneEvent] = []
    lost: asyncio.Queue[LaneEvent] = asyncio.Queue()
    accepted = ends[0].accept(ends[1].offer(), lost.put_nowait)
    receiver = await ends[1].connect(accepted.answer, events.append)
    return Lane((ends[0], ends[1]), accepted.lane, receiver, source, pool, events, lost)


async def ended(transfer: Transfer) -> TransferResult:
    return await asyncio.wait_for(transfer.wait(), 10)


async def until(true: Callable[[], bool]) -> None:
    """Waits a while for what makes no event."""
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0)


def grant_all(lane: Lane, grant_id: int = 1) -> None:
    lane.receiver.grant(GrantId(grant_id), u64(0), u64(POOL))


async def close(lane: Lane) -> None:
    for end in reversed(lane.ends):
        await end.close()
