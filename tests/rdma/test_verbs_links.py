"""Real devices whose links go down and come up: the kernel's events move the traffic, long before any time-out would.

Time-outs of the queue pairs are set to hours here, so whatever goes on goes on because of an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma import (
    Direction,
    EndpointSettings,
    LaneEvent,
    SenderLane,
    Transfer,
    TransferStatus,
    VerbsSettings,
    open_endpoint,
)
from tests.support.rdma.pools import Bytes, buffers_of, random_pool, u64

pytestmark = [
    pytest.mark.rdma,
    pytest.mark.skipif(not Path("/sys/class/net/cable0").exists(), reason="needs the guest's cable"),
]

POOL: Final = 4 << 20
SOON_S: Final = 30
"""For an emulated processor; the time-outs are hours."""
NEVER: Final = {"timeout": 31, "retry_cnt": 6}
SMALL: Final = {"piece_bytes": 32 << 10, "receive_depth": 8, "window_bytes": 1 << 20}

# Two more devices, rxe2 with 10.98.0.2 and rxe3 with 10.98.0.3, each at a plug of one switch. The rules are as those of
# the guest's cable, see tools/rdma_vm/guest/boot.sh.
_PLUG = """
ip link add cable{n} type veth peer name plug{n}
ip addr add 10.98.0.{n}/24 dev cable{n}
ip link set cable{n} mtu 4200 up
ip link set plug{n} mtu 4200 master switch0 up
sysctl -qw net.ipv4.conf.cable{n}.accept_local=1 net.ipv4.conf.cable{n}.rp_filter=0
ip route add 10.98.0.{peer} dev cable{n} src 10.98.0.{n} table 10{n}
ip rule add pref 1{n} iif cable{n} lookup local
ip rule add pref 2{n} from 10.98.0.{n} to 10.98.0.{peer} lookup 10{n}
rdma link add rxe{n} type rxe netdev cable{n}
"""
_UNPLUG = """
rdma link delete rxe{n}
ip rule del pref 1{n}
ip rule del pref 2{n}
ip link delete cable{n}
"""


async def _run(script: str) -> None:
    """Runs some commands."""
    process = await asyncio.create_subprocess_exec("bash", "-ec", script)
    assert await process.wait() == 0


@pytest.fixture
async def switch() -> AsyncIterator[None]:
    """The switch and its two devices."""
    await _run("modprobe bridge; ip link add switch0 type bridge; ip link set switch0 up")
    for number, peer in ((2, 3), (3, 2)):
        await _run(_PLUG.format(n=number, peer=peer))
    yield
    for number in (2, 3):
        await _run(_UNPLUG.format(n=number))
    await _run("ip link delete switch0")


class Lane:
    """A lane within this process, over some devices of each end, with a grant of everything."""

    def __init__(self, source: Bytes, pool: Bytes, sender: SenderLane, lost: list[LaneEvent]) -> None:
        self.source, self.pool = source, pool
        self.sender = sender
        self.rails = sender._rails  # type: ignore[attr-defined]
        self.lost = lost
        self._chunks = 0

    def write(self, count: int = POOL) -> Transfer:
        """Begins a write of the pool's first bytes."""
        self._chunks += 1
        return self.sender.write(u64(0), u64(0), u64(count), GrantId(1), ChunkIndex(self._chunks))

    async def expect_good(self, transfer: Transfer) -> None:
        """A write ends soon, and well."""
        result = await asyncio.wait_for(transfer.wait(), SOON_S)
        assert result.status is TransferStatus.DONE, result.error
        assert np.array_equal(self.pool[: result.bytes], self.source[: result.bytes])
        assert not self.lost


@asynccontextmanager
async def lane(senders: tuple[str, ...], receivers: tuple[str, ...]) -> AsyncIterator[Lane]:
    """See `Lane`."""
    source, pool, ends = random_pool(POOL, 7), np.zeros(POOL, np.uint8), []
    for memory, direction, devices in ((source, Direction.SEND, senders), (pool, Direction.RECEIVE, receivers)):
        verbs = VerbsSettings(devices=devices, **NEVER, **SMALL)
        settings = EndpointSettings(("verbs",), direction=direction, verbs=verbs, connect_timeout_ms=SOON_S * 1000)
        end = open_endpoint(buffers_of(memory), settings)
        await end.start()
        ends.append(end)
    lost: list[LaneEvent] = []
    accepted = ends[0].accept(ends[1].offer(), lost.append)
    receiver = await ends[1].connect(accepted.answer, lambda event: None)
    receiver.grant(GrantId(1), u64(0), u64(POOL))
    try:
        made = Lane(source, pool, accepted.lane, lost)
        await until(lambda: len(made.rails) == len(senders) and all(rail.rail.up for rail in made.rails))
        yield made
    finally:
        for end in reversed(ends):
            await end.close()


async def until(true: Callable[[], bool]) -> None:
    """Waits for what makes no event."""
    async with asyncio.timeout(SOON_S):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("plug", ["plug2", "plug3"], ids=["sender", "receiver"])
async def test_a_rail_whose_link_goes_down_is_left_at_once_and_used_again_when_it_is_up(
    switch: None, plug: str
) -> None:
    """Only one end sees it: the other's link to the switch stays up."""
    async with lane(("rxe0", "rxe2"), ("rxe1", "rxe3")) as made:
        steady, tried = made.rails
        await made.expect_good(made.write())
        assert tried.total_bytes > 0
        await _run(f"ip link set {plug} nomaster")  # it is silent now, and its link is up
        transfer = made.write()
        await until(lambda: tried.queued_bytes > 0 == steady.queued_bytes)
        ending = asyncio.ensure_future(made.expect_good(transfer))
        assert (await asyncio.wait({ending}, timeout=0.5))[0] == set(), (
            "the rest of the write waits for the silent rail"
        )
        await _run(f"ip link set {plug} down")
        await ending
        assert not tried.rail.up
        used = tried.total_bytes
        await made.expect_good(made.write())
        assert tried.total_bytes == used
        await _run(f"ip link set {plug} up master switch0")
        await until(lambda: bool(tried.rail.up))
        await made.expect_good(made.write())
        assert tried.total_bytes > used


async def test_a_lane_of_one_rail_outlives_a_link_that_is_down_for_a_moment(switch: None) -> None:
    async with lane(("rxe2",), ("rxe3",)) as made:
        await _run("ip link set plug2 nomaster")
        transfer = made.write()
        await until(lambda: made.rails[0].queued_bytes > 0)
        await _run("ip link set plug2 down; ip link set plug2 up master switch0")
        await made.expect_good(transfer)
        assert made.rails[0].rail.life > 1
