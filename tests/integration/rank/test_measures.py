"""What ranks measure while rooms go well, fail and are given up, and that it reaches the service whole."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tandem.core.errors import ErrorReason
from tandem.core.ids import RankId, Role, RoomId
from tandem.core.layout import KvLayout
from tandem.core.room.events import Phase, Why
from tandem.engine import measures
from tandem.engine.hub import RankHub
from tandem.engine.measures import PeerMeasures, RankMeasures, RankReport
from tandem.engine.rank import reports
from tandem.engine.rank.agent import RankSetup
from tandem.engine.rank.settings import RankSettings
from tandem.engine.rank.status import Gauges
from tandem.engine.rank.threaded import ThreadedRank
from tests.support.rank.pair import PREFILL, Memory, Pair, pair, reached

pytestmark = pytest.mark.timeout(60)

PAGES = np.arange(4)
ROOM_BYTES = 4 * 128 + 24 + 16
"""Four pages of both buffers, one entry of the state component, one metadata row."""


async def _hand_over(ranks: Pair, room: int) -> tuple[Phase, Phase]:
    """A room of two chunks to its end."""
    await ranks.open(room)
    sender, receiver = ranks.prefill.agent.sender(RoomId(room)), ranks.decode.agent.receiver(RoomId(room))
    await reached(receiver, Phase.WAITING)
    receiver.offer(PAGES, [PAGES[:1]], metadata_row=0)
    sender.push(PAGES[:2], last=False)
    sender.push(PAGES[2:], [PAGES[:1]], last=True, metadata_row=0)
    over = (Phase.SUCCESS, Phase.FAILED)
    return await reached(sender, *over), await reached(receiver, *over)


def _measures(ranks: Pair) -> tuple[RankMeasures, RankMeasures]:
    return ranks.prefill.agent.report().measures, ranks.decode.agent.report().measures


@pytest.mark.parametrize("provider", ["tcp", "cma"])
async def test_a_room_that_goes_well_is_timed_and_its_bytes_are_counted_on_both_sides(provider: str) -> None:
    async with pair(provider) as ranks:
        for room in (1, 2):
            assert await _hand_over(ranks, room) == (Phase.SUCCESS, Phase.SUCCESS)
        prefill, decode = _measures(ranks)
        for side, peer in ((prefill, "decode-0"), (decode, "prefill-0")):
            assert side.rooms_succeeded == 2
            assert not side.rooms_failed
            assert sum(side.queue_s.counts) == sum(side.room_s.counts) == 2
            assert side.room_s.sum > 0
            found = side.peers[(peer, provider)]
            assert (found.links, found.links_opened, found.bytes, found.chunks) == (1, 1, 2 * ROOM_BYTES, 4)
        assert sum(prefill.peers[("decode-0", provider)].chunk_s.counts) == 4
        assert prefill.peers[("decode-0", provider)].chunk_s.sum > 0
        assert sum(decode.peers[("prefill-0", provider)].chunk_s.counts) == 0


async def test_an_abort_is_counted_by_who_gave_up_and_its_grant_as_revoked() -> None:
    async with pair() as ranks:
        await ranks.open(3)
        sender, receiver = ranks.prefill.agent.sender(RoomId(3)), ranks.decode.agent.receiver(RoomId(3))
        await reached(receiver, Phase.WAITING)
        receiver.offer(PAGES, [PAGES[:1]], metadata_row=0)
        await reached(sender, Phase.WAITING)
        sender.abort(ErrorReason.CANCELLED, "left")
        await reached(receiver, Phase.FAILED)
        await reached(sender, Phase.FAILED)
        prefill, decode = _measures(ranks)
        assert (prefill.aborts_sent, prefill.aborts_received) == (1, 0)
        assert (decode.aborts_sent, decode.aborts_received) == (0, 1)
        assert decode.revoked == {"tcp": 1}
        for side in (prefill, decode):
            assert side.rooms_failed == {"CANCELLED": 1}
            assert sum(side.fence_s.counts) == 1
            assert sum(side.room_s.counts) == 0


async def test_changed_bytes_are_a_reason_and_the_bytes_have_moved_all_the_same() -> None:
    faulty = RankSettings.load(providers="tcp", fault_flip_chunk=1)
    async with pair(decode=faulty) as ranks:
        assert await _hand_over(ranks, 4) == (Phase.FAILED, Phase.FAILED)
        prefill, decode = _measures(ranks)
        assert prefill.rooms_failed == decode.rooms_failed == {"CHECKSUM_MISMATCH": 1}
        assert decode.peers[("prefill-0", "tcp")].bytes == ROOM_BYTES


async def test_open_rooms_are_told_by_state_and_age_and_late_ones_as_overdue() -> None:
    async with pair() as ranks:
        await ranks.open(5)
        await reached(ranks.decode.agent.receiver(RoomId(5)), Phase.WAITING)
        report = ranks.decode.agent.report()
        assert report.rooms == {"ready": 1}
        assert report.rooms_overdue == 0
        assert 0 < report.oldest_room_s < 60
        assert ranks.prefill.agent.report().rooms == {"awaiting_grant": 1}
        assert report.process.resident_bytes > 1 << 20
        assert report.process.open_fds > 2
        # One that is past its deadline and still fencing: nobody gave it the time to end.
        late = ranks.prefill.agent
        await late.open_ticket(ranks.ticket(6, "prefill", timeout_s=-1))
        assert late.report().rooms_overdue == 1


async def test_a_link_that_is_lost_is_up_no_more() -> None:
    async with pair() as ranks:
        assert await _hand_over(ranks, 7) == (Phase.SUCCESS, Phase.SUCCESS)
        (link,) = ranks.prefill.agent._links_up
        for _ in range(2):  # both who sees it first and who closes the link say so
            await ranks.prefill.agent.link_down(link, Why(ErrorReason.LINK_LOST, "cut"))
        found = ranks.prefill.agent.report().measures.peers[("decode-0", "tcp")]
        assert (found.links, found.links_opened) == (0, 1)
        assert ranks.prefill.agent.counters.links == {}


def test_peers_beyond_the_bound_are_counted_together() -> None:
    counted = RankMeasures()
    for number in range(measures.MAX_PEERS + 3):
        counted.peer(f"peer-{number}", "tcp").landed(10)
    assert len(counted.peers) == measures.MAX_PEERS + 1
    assert counted.peers[("other", "tcp")].bytes == 30
    counted.peer("peer-0", "tcp").landed(5)
    assert counted.peers[("peer-0", "tcp")].bytes == 15


async def test_a_report_survives_the_wire() -> None:
    async with pair() as ranks:
        assert await _hand_over(ranks, 8) == (Phase.SUCCESS, Phase.SUCCESS)
        ranks.decode.agent.counters.measures.revoked["tcp"] += 2
        await ranks.open(9)
        for side in (ranks.prefill, ranks.decode):
            report = side.agent.report()
            there = reports.from_proto(report.rank, reports.to_proto(report))
            assert _rounded(there) == _rounded(report)


def _rounded(report: RankReport) -> tuple[object, ...]:
    """A report without what a message rounds."""
    ints = (report.rank, report.rooms, report.rooms_overdue, report.queue_pairs_replaced, report.measures)
    return (*ints, report.process.resident_bytes, report.process.open_fds, round(report.oldest_room_s * 1000))


async def test_the_hub_gets_the_reports_of_every_rank_only_where_it_asks_for_them() -> None:
    hub = RankHub(2)
    address = await hub.start()
    ranks, memories = [], [Memory() for _ in range(2)]
    for tp, memory in enumerate(memories):
        pools = memory.pools()
        layout = KvLayout(8, "uint8", 1, "nhd", 2, 1, tuple(pool.layout for pool in pools))
        setup = RankSetup(Role.PREFILL, RankId(tp=tp), layout, pools, RankSettings.load(providers="tcp"))
        ranks.append(ThreadedRank(setup, address, Gauges))
    try:
        await asyncio.gather(*(asyncio.to_thread(rank.start) for rank in ranks))
        await hub.wait_ranks(10_000)
        hub.identify(PREFILL)
        found = await hub.measured()
        assert [report.rank for report in found.ranks] == [RankId(tp=0), RankId(tp=1)]
        assert all(report.process.resident_bytes for report in found.ranks)
        assert found.status == await hub.status()
        answers = await hub._poll(metrics=False)
        assert not any(answer.HasField("metrics") for answer in answers.values())
    finally:
        await hub.close()
        await asyncio.gather(*(asyncio.to_thread(rank.close) for rank in ranks))


def test_two_ranks_peers_add_up() -> None:
    one, two = PeerMeasures(links=1, links_opened=2), PeerMeasures(links=1, links_opened=1)
    one.moved(100, 0.001)
    two.moved(50, 20.0)
    both = one.plus(two)
    assert (both.links, both.links_opened, both.bytes, both.chunks) == (2, 3, 150, 2)
    assert both.chunk_s.sum == pytest.approx(20.001)
    assert both.chunk_s.counts[-1] == 1
    assert sum(both.chunk_s.counts) == 2
