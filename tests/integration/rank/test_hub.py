"""Ranks in threads of their own attach to their service's hub, as SGLang's schedulers do."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RankId, RequestId, Role, RoomId
from tandem.core.layout import KvLayout
from tandem.core.room.events import Phase, Why
from tandem.core.room.timeline import Step
from tandem.engine.hub import RankHub
from tandem.engine.port import Job, PoolStatus, RoomTrace, Sampling
from tandem.engine.rank.agent import RankSetup
from tandem.engine.rank.settings import RankSettings
from tandem.engine.rank.status import Gauges
from tandem.engine.rank.threaded import ThreadedRank
from tests.support.rank.pair import DECODE, NONCE, PREFILL, Memory

pytestmark = pytest.mark.timeout(60)


class Worker:
    """One engine of `tp` ranks, each in its own thread, and its hub."""

    def __init__(self, role: Role, tp: int) -> None:
        self.traces: list[RoomTrace] = []
        self.hub = RankHub(tp, on_room_traced=self.traces.append)
        self.memories = [Memory() for _ in range(tp)]
        self.ranks: list[ThreadedRank] = []
        self.role = role

    async def start(self) -> dict[RankId, str]:
        self.address = await self.hub.start()
        return await self.attach(self.address)

    async def attach(self, address: str) -> dict[RankId, str]:
        """Starts ranks."""
        gauges = Gauges(pools=(PoolStatus("kv", 32, 30, 2, 0),), running=1)
        for tp, memory in enumerate(self.memories):
            pools = memory.pools()
            layout = KvLayout(8, "uint8", 1, "nhd", len(self.memories), 1, tuple(pool.layout for pool in pools))
            setup = RankSetup(self.role, RankId(tp=tp), layout, pools, RankSettings.load(providers="tcp"))
            self.ranks.append(ThreadedRank(setup, address, lambda: gauges))
        await asyncio.gather(*(asyncio.to_thread(rank.start) for rank in self.ranks))
        infos, _ = await self.hub.wait_ranks(5_000)
        self.hub.identify(PREFILL if self.role is Role.PREFILL else DECODE)
        return {info.rank: info.kv_link_address for info in infos}

    async def close(self) -> None:
        await self.hub.close()
        await asyncio.gather(*(asyncio.to_thread(rank.close) for rank in self.ranks))


def _job(room: int, peer: str, addresses: dict[RankId, str], timeout_s: float = 5.0, traceparent: str = "") -> Job:
    return Job(
        request_id=RequestId("r"),
        room=RoomId(room),
        nonce=NONCE,
        peer=PREFILL if peer == "prefill" else DECODE,
        peer_addresses=addresses,
        deadline=asyncio.get_running_loop().time() + timeout_s,
        input_ids=[1, 2, 3],
        sampling=Sampling(max_new_tokens=4),
        traceparent=traceparent,
    )


async def _poll(handle: object, *phases: Phase) -> Phase:
    """A scheduler has no events: it looks at `phase` in every step of its loop, and so does this."""
    async with asyncio.timeout(10):
        while handle.phase not in phases:  # type: ignore[attr-defined]  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    return handle.phase  # type: ignore[attr-defined,no-any-return]


async def test_two_ranks_each_hand_their_share_over() -> None:
    prefill, decode = Worker(Role.PREFILL, 2), Worker(Role.DECODE, 2)
    try:
        addresses = await prefill.start()
        await decode.start()
        await asyncio.gather(
            prefill.hub.open_tickets(_job(5, "decode", {})), decode.hub.open_tickets(_job(5, "prefill", addresses))
        )
        rng = np.random.default_rng(3)
        for tp in range(2):
            prefill.memories[tp].kv[0][:] = rng.integers(0, 256, (32, 64), dtype=np.uint8)
            sender, receiver = prefill.ranks[tp].sender(5), decode.ranks[tp].receiver(5)
            assert await _poll(receiver, Phase.WAITING, Phase.FAILED) is Phase.WAITING
            receiver.offer([4, 5], metadata_row=1)
            assert await _poll(sender, Phase.WAITING, Phase.FAILED) is Phase.WAITING
            sender.push([8, 2], last=True, metadata_row=0)
            assert await _poll(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS
            assert await _poll(sender, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS
            np.testing.assert_array_equal(decode.memories[tp].kv[0][[4, 5]], prefill.memories[tp].kv[0][[8, 2]])
        status = await decode.hub.status()
        assert (status.rooms_succeeded, status.kv_bytes, status.metadata_bytes) == (1, 2 * 2 * 128, 2 * 16)
        assert status.traffic == {("prefill-0", "tcp"): status.kv_bytes + status.metadata_bytes}
        assert (await prefill.hub.status()).traffic == {("decode-0", "tcp"): status.kv_bytes + status.metadata_bytes}
        assert status.pools == (PoolStatus("kv", 32, 30, 2, 0),)
    finally:
        await decode.close()
        await prefill.close()


@pytest.mark.parametrize("sampled", [True, False])
async def test_ranks_say_what_took_the_time_of_a_room_that_is_traced(sampled: bool) -> None:
    traceparent = f"00-{'ab' * 16}-00f067aa0ba902b7-0{int(sampled)}"
    prefill, decode = Worker(Role.PREFILL, 2), Worker(Role.DECODE, 2)
    try:
        addresses = await prefill.start()
        await decode.start()
        await asyncio.gather(
            prefill.hub.open_tickets(_job(5, "decode", {}, traceparent=traceparent)),
            decode.hub.open_tickets(_job(5, "prefill", addresses, traceparent=traceparent)),
        )
        for tp in range(2):
            sender, receiver = prefill.ranks[tp].sender(5), decode.ranks[tp].receiver(5)
            await _poll(receiver, Phase.WAITING, Phase.FAILED)
            receiver.offer([4, 5, 6], metadata_row=1)
            await _poll(sender, Phase.WAITING, Phase.FAILED)
            sender.began(time.monotonic())
            sender.push([8], last=False)
            sender.push([2, 3], last=True, metadata_row=0)
            await _poll(sender, Phase.SUCCESS, Phase.FAILED)
            await _poll(receiver, Phase.SUCCESS, Phase.FAILED)
        await asyncio.gather(prefill.hub.status(), decode.hub.status())  # so that what ranks said before is here
    finally:
        await decode.close()
        await prefill.close()
    if not sampled:
        assert prefill.traces == decode.traces == []
        return
    for worker in (prefill, decode):
        assert sorted(trace.rank.tp for trace in worker.traces) == [0, 1]
        assert {(trace.room, trace.traceparent, trace.dropped) for trace in worker.traces} == {(5, traceparent, 0)}
    for trace in prefill.traces:
        chunks = [(span.chunk, span.pages, span.provider) for span in trace.spans if span.step is Step.CHUNK]
        assert sorted(chunks) == [(0, 1, "tcp"), (1, 2, "tcp")]
        others = {span.step for span in trace.spans if span.step is not Step.CHUNK}
        assert others == {Step.GRANT_WAIT, Step.QUEUE, Step.COMPUTE, Step.LANDING}
    for trace in decode.traces:
        landed = [(span.chunk, span.bytes) for span in trace.spans if span.step is Step.LANDED]
        assert sorted(landed) == [(0, 128), (1, 2 * 128 + 16)]
        (receive,) = (span for span in trace.spans if span.step is Step.RECEIVE)
        assert (receive.pages, receive.bytes, receive.reason) == (3, 3 * 128 + 16, None)
        assert abs(trace.opened_unix_ns - time.time_ns()) < 60e9


async def test_a_traced_room_that_fails_says_where_it_stood() -> None:
    traceparent = f"00-{'ab' * 16}-00f067aa0ba902b7-01"
    prefill = Worker(Role.PREFILL, 1)
    try:
        await prefill.start()
        await prefill.hub.open_tickets(_job(7, "decode", {}, traceparent=traceparent))
        prefill.hub.abort(RoomId(7), Why(ErrorReason.PEER_LOST, "gone"))
        sender = prefill.ranks[0].sender(7)
        await _poll(sender, Phase.FAILED)
        await prefill.hub.status()
    finally:
        await prefill.close()
    (trace,) = prefill.traces
    assert [(span.step, span.reason) for span in trace.spans] == [
        (Step.GRANT_WAIT, ErrorReason.PEER_LOST),
        (Step.FENCE, None),
    ]


async def test_a_refused_ticket_is_reported_and_a_room_can_be_aborted() -> None:
    prefill = Worker(Role.PREFILL, 2)
    try:
        await prefill.start()
        await prefill.hub.open_tickets(_job(6, "decode", {}))
        with pytest.raises(TandemError) as caught:
            await prefill.hub.open_tickets(_job(6, "decode", {}))
        assert caught.value.reason is ErrorReason.ROOM_EXISTS
        sender = prefill.ranks[0].sender(6)
        assert (await prefill.hub.status()).open_rooms == 2, "the room that was there is left alone"
        prefill.hub.abort(RoomId(6), Why(ErrorReason.CANCELLED, "left"))
        assert await _poll(sender, Phase.FAILED) is Phase.FAILED
    finally:
        await prefill.close()


async def test_a_lost_rank_is_the_engines_end() -> None:
    decode = Worker(Role.DECODE, 2)
    try:
        await decode.start()
        failed = asyncio.ensure_future(decode.hub.wait_failed())
        await asyncio.to_thread(decode.ranks[1].close)
        async with asyncio.timeout(5):
            error = await failed
        assert error.reason is ErrorReason.ENGINE_FAILED
        assert "tp1" in error.message
    finally:
        await decode.close()


async def test_a_rank_whose_service_hung_up_may_be_used_and_closed_at_any_moment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also between the end of the rank's loop and that of its thread, where nothing can be posted any more."""
    loop_closed, thread_may_end, run = threading.Event(), threading.Event(), asyncio.run

    def lingering(main: Coroutine[Any, Any, None]) -> None:
        run(main)
        loop_closed.set()
        thread_may_end.wait(10)

    monkeypatch.setattr("tandem.engine.rank.threaded.asyncio.run", lingering)
    prefill = Worker(Role.PREFILL, 1)
    await prefill.start()
    sender = prefill.ranks[0].sender(7)
    await prefill.hub.close()
    assert await asyncio.to_thread(loop_closed.wait, 10)
    assert "rank dp0.pp0.tp0 lost its service: " in caplog.text
    sender.abort(ErrorReason.CANCELLED, "the engine was told to")
    thread = prefill.ranks[0]._thread
    join = thread.join

    def join_and_let_end(timeout_s: float) -> None:
        thread_may_end.set()
        join(timeout_s)

    monkeypatch.setattr(thread, "join", join_and_let_end)
    await asyncio.to_thread(prefill.ranks[0].close)


async def test_ranks_that_are_released_go_and_others_take_their_places() -> None:
    """As when an engine takes another role: its ranks end, and attach anew, before or after the hub sees them go."""
    worker, peer = Worker(Role.DECODE, 2), Worker(Role.DECODE, 2)
    try:
        await worker.start()
        addresses_of_nobody = await peer.start()
        assert set(addresses_of_nobody.values()) == {""}
        failed = asyncio.ensure_future(worker.hub.wait_failed())
        gone = worker.ranks[:]
        worker.hub.release()
        with pytest.raises(TandemError, match="0 of 2 engine ranks"):
            await worker.hub.wait_ranks(1)
        await asyncio.to_thread(gone[0].close)
        worker.role, worker.ranks = Role.PREFILL, []
        addresses = await worker.attach(worker.address)
        await asyncio.to_thread(gone[1].close)
        await asyncio.gather(
            worker.hub.open_tickets(_job(5, "decode", {})), peer.hub.open_tickets(_job(5, "prefill", addresses))
        )
        for tp in range(2):
            sender, receiver = worker.ranks[tp].sender(5), peer.ranks[tp].receiver(5)
            assert await _poll(receiver, Phase.WAITING, Phase.FAILED) is Phase.WAITING
            receiver.offer([4], metadata_row=1)
            assert await _poll(sender, Phase.WAITING, Phase.FAILED) is Phase.WAITING
            sender.push([8], last=True, metadata_row=0)
            assert await _poll(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS
        assert (await worker.hub.status()).rooms_succeeded == 1
        assert not failed.done()
        await asyncio.to_thread(worker.ranks[0].close)
        assert "engine rank dp0.pp0.tp0" in (await failed).message, "of those that are there now each is missed"
    finally:
        await peer.close()
        await worker.close()


async def test_ranks_that_do_not_come_are_counted() -> None:
    hub = RankHub(2)
    await hub.start()
    with pytest.raises(TandemError, match="0 of 2 engine ranks"):
        await hub.wait_ranks(50)
    await hub.close()


async def test_open_rooms_of_every_rank_are_told_the_oldest_first() -> None:
    prefill, decode = Worker(Role.PREFILL, 2), Worker(Role.DECODE, 2)
    try:
        addresses = await prefill.start()
        await decode.start()
        for room in (5, 6):
            await prefill.hub.open_tickets(_job(room, "decode", {}))
            await decode.hub.open_tickets(_job(room, "prefill", addresses))
        receiver, sender = decode.ranks[0].receiver(5), prefill.ranks[0].sender(5)
        assert await _poll(receiver, Phase.WAITING, Phase.FAILED) is Phase.WAITING
        receiver.offer([4, 5], metadata_row=1)
        assert await _poll(sender, Phase.WAITING, Phase.FAILED) is Phase.WAITING
        found = await decode.hub.rooms(10)
        assert found.total == 4
        assert [room.room for room in found.rooms][:2] == [5, 5]
        states = {(room.room, room.rank.tp): (room.state, room.granted_pages) for room in found.rooms}
        assert states[5, 0] == ("offered", 2)
        assert states[5, 1] in (("ready", 0), ("connecting", 0))
        assert all(room.peer == PREFILL and 0 < room.left_ms <= 5_000 for room in found.rooms)
        [granted] = [one for one in (await prefill.hub.rooms(10)).rooms if (one.room, one.rank.tp) == (5, 0)]
        assert (granted.state, granted.granted_pages) == ("granted", 2)
        assert [room.room for room in (await decode.hub.rooms(1)).rooms] == [5, 5]
    finally:
        await decode.close()
        await prefill.close()


async def test_ranks_that_work_alone_tell_their_numbers_and_open_no_rooms() -> None:
    hub = RankHub(2)
    address = await hub.start()
    gauges = Gauges(pools=(PoolStatus("kv", 32, 30, 2, 0),), running=3, waiting=1)
    layout = KvLayout(8, "uint8", 1, "nhd", 2, 1, ())
    setups = [RankSetup(Role.UNIFIED, RankId(tp=tp), layout, ()) for tp in range(2)]
    ranks = [ThreadedRank(setup, address, lambda: gauges) for setup in setups]
    try:
        await asyncio.gather(*(asyncio.to_thread(rank.start) for rank in ranks))
        infos, found = await hub.wait_ranks(5_000)
        assert ([info.kv_link_address for info in infos], found) == (["", ""], layout)
        hub.identify(DECODE)
        measured = await hub.measured()
        assert (measured.status.running, measured.status.waiting, measured.status.pools) == (3, 1, gauges.pools)
        assert [report.process.resident_bytes > 0 for report in measured.ranks] == [True, True]
        assert (await hub.rooms(10)).total == 0
        with pytest.raises(TandemError) as caught:
            await hub.open_tickets(_job(1, "prefill", {}))
        assert caught.value.reason is ErrorReason.NOT_SUPPORTED
    finally:
        await hub.close()
        await asyncio.gather(*(asyncio.to_thread(rank.close) for rank in ranks))
