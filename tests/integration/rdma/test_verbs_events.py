"""What a verbs lane does when its devices say something by themselves: the asynchronous events."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma import (
    LaneLost,
    ProviderOffer,
    TransferStatus,
)
from tests.support.rdma.double import DoubleContext, DoubleQp, Fabric, SendRequest, use_double
from tests.support.rdma.verbs_lane import MIB, POOL, Lane, close, ended, grant_all, open_lane, until


def watch(fabric: Fabric, silent: str = "") -> Counter[str]:
    """Counts the writes of each device from now on; those of one wait for ever, as if its way were silent."""
    used: Counter[str] = Counter()

    def see(pair: DoubleQp, _: SendRequest) -> str:
        used[pair.pd.device] += 1
        return "hold" if pair.pd.device == silent else ""

    fabric.fault = see
    return used


@pytest.mark.parametrize("end", ["both", "sender", "receiver"])
async def test_a_port_that_goes_down_moves_its_pieces_and_is_used_again_when_it_is_up(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """No write of the silent rail ever ends by itself: only the event takes its pieces away, at whichever end it is."""
    with use_double(monkeypatch, devices=("s0", "s1", "r0", "r1")) as fabric:
        lane = await open_lane(("s0", "s1"), ("r0", "r1"))
        grant_all(lane)
        used = watch(fabric, silent="s0")
        transfer = lane.write(1, 0, 2 * MIB)
        await until(lambda: used["s0"] > 0)
        down = {"both": ("s0", "r0"), "sender": ("s0",), "receiver": ("r0",)}[end]
        for name in down:
            fabric.port(name, up=False)
        rails = {"s0": lane.sender._rails[0].rail, "r0": lane.receiver._rails[0]}  # type: ignore[attr-defined]
        rail = rails["s0"]
        await until(lambda: not all(each.up for each in rails.values()))
        assert not rails[down[0]].up, "it does not wait to be told by its peer"
        assert (await ended(transfer)).status is TransferStatus.DONE
        assert lane.holds(0, 2 * MIB)
        assert used["s0"] == 1
        used = watch(fabric)
        assert (await ended(lane.write(1, 2 * MIB, MIB, 1))).status is TransferStatus.DONE
        assert not used["s0"], "nothing goes over it while it is down"
        assert (rail.up, rail.life) == (False, 1 if "s0" in down else 2), "nobody tries to connect meanwhile"
        for name in down:
            fabric.port(name, up=True)
        await until(lambda: rail.up)
        assert (await ended(lane.write(1, 3 * MIB, MIB, 2))).status is TransferStatus.DONE
        assert used["s0"] > 0, "it is not left out"
        assert lane.lost.empty()
        await close(lane)
    assert not fabric.open


async def test_a_port_that_comes_up_is_tried_before_the_delay_of_a_broken_rail_is_over(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.rdma.verbs.sender._FIRST_DELAY_S", 3600.0)
    monkeypatch.setattr("tandem.rdma.verbs.sender._LAST_DELAY_S", 3600.0)
    lane = await open_lane()
    grant_all(lane)
    fabric.fault = lambda pair, _: "drop" if pair.pd.device == "dbl0" else ""
    assert (await ended(lane.write(1, 0, MIB))).status is TransferStatus.DONE
    rail = lane.sender._rails[0].rail  # type: ignore[attr-defined]
    assert not rail.up
    fabric.port("dbl0", up=False)
    await asyncio.sleep(0.01)
    fabric.port("dbl0", up=True)
    await until(lambda: rail.up)
    await close(lane)


async def test_a_lane_outlives_a_link_that_is_down_for_a_moment(fabric: Fabric) -> None:
    lane = await open_lane(("dbl0",), ("dbl0",))
    grant_all(lane)
    used = watch(fabric, silent="dbl0")
    transfer = lane.write(1, 0, MIB)
    await until(lambda: used["dbl0"] > 0)
    fabric.port("dbl0", up=False)
    await asyncio.sleep(0.05)
    watch(fabric)
    fabric.port("dbl0", up=True)
    assert (await ended(transfer)).status is TransferStatus.DONE
    assert lane.holds(0, MIB)
    assert lane.lost.empty()
    await close(lane)


async def test_a_link_that_stays_down_loses_a_lane_without_another_in_the_time_of_the_settings(fabric: Fabric) -> None:
    lane = await open_lane(("dbl0",), ("dbl0",), connect_timeout_ms=200)
    grant_all(lane)
    fabric.port("dbl0", up=False)
    result = await ended(lane.write(1, 0, MIB))
    assert (result.status, result.error and result.error.reason) == (TransferStatus.FAILED, ErrorReason.LINK_LOST)
    assert isinstance(await asyncio.wait_for(lane.lost.get(), 5), LaneLost)
    await close(lane)


@pytest.mark.parametrize(
    ("event", "words"), [("DEVICE_FATAL", "the device failed"), ("CQ_ERR", "its completion queue failed")]
)
async def test_a_device_that_fails_ends_its_rails_for_good(
    fabric: Fabric, lane: Lane, caplog: pytest.LogCaptureFixture, event: str, words: str
) -> None:
    grant_all(lane)
    used = watch(fabric, silent="dbl0")
    transfer = lane.write(1, 0, 2 * MIB)
    await until(lambda: used["dbl0"] > 0)
    fabric.fail("dbl0", event)
    assert (await ended(transfer)).status is TransferStatus.DONE
    assert lane.holds(0, 2 * MIB)
    assert f"dbl0: {words}" in caplog.text
    rail = lane.sender._rails[0].rail  # type: ignore[attr-defined]
    await asyncio.sleep(0.1)
    assert (rail.up, rail.life) == (False, 2), "it is not tried again"
    looked = [part.looked for part in fabric.open if isinstance(part, DoubleContext) and part.name == "dbl0"]
    assert looked == [1, 1], "what is readable for ever is not watched any more"
    assert [offer.name for offer in lane.ends[1].offer()] == ["verbs"]
    fabric.fail("dbl1", event)
    lost = await asyncio.wait_for(lane.lost.get(), 5)
    assert isinstance(lost, LaneLost)
    assert words in lost.error.message
    assert not lane.ends[1].offer(), "no further lane can be opened over it"
    with pytest.raises(TandemError, match=words):
        lane.ends[0].accept([ProviderOffer("verbs", memory_bytes=POOL)], lane.lost.put_nowait)


async def test_other_events_are_told_and_break_nothing(
    fabric: Fabric, lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    grant_all(lane)
    with caplog.at_level("DEBUG", "tandem.rdma"):
        fabric.happen("dbl0", "QP_ACCESS_ERR")
        fabric.happen("dbl0", "PORT_ERR")  # of another port: ours is still active
        fabric.happen("dbl0", "COMM_EST")
        fabric.happen("dbl0", "COMM_EST")
        assert (await ended(lane.write(1, 0, MIB))).status is TransferStatus.DONE
    assert "dbl0: a queue pair got a request that has no right (QP_ACCESS_ERR, 1 so far)" in caplog.text
    assert "(COMM_EST, 2 so far)" in caplog.text
    assert [sender_rail.rail.life for sender_rail in lane.sender._rails] == [1, 1]  # type: ignore[attr-defined]


async def test_without_a_descriptor_of_events_one_line_says_so_and_lanes_work(
    fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    fabric.watched = False
    with caplog.at_level("INFO", "tandem.rdma"):
        lane = await open_lane(("dbl0",), ("dbl1",))
    assert caplog.text.count("no descriptor of its events was found") == 2, "one for each end's device"
    grant_all(lane)
    fabric.happen("dbl0", "DEVICE_FATAL")
    assert (await ended(lane.write(1, 0, MIB))).status is TransferStatus.DONE
    await close(lane)
