"""A prefill rank and a decode rank move KV over real links and lanes, and every fault has its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from tandem.core import version
from tandem.core.errors import ErrorReason
from tandem.core.ids import Incarnation, Nonce, WorkerLife
from tandem.core.room.events import Phase
from tandem.core.version import Feature, Protocol
from tandem.engine.rank.handles import ReceiverHandle, SenderHandle
from tandem.engine.rank.offers import Offer, OfferCollector, OfferParts
from tandem.engine.rank.settings import RankSettings
from tandem.v1 import kv_link_pb2
from tests.support.rank.pair import DECODE, PREFILL, Memory, Pair, pair, reached

pytestmark = pytest.mark.timeout(60)

SOURCE = np.array([3, 4, 5, 9, 8])
TARGET = np.array([40, 41, 7, 2, 3])
STATE_SOURCE, STATE_TARGET = np.array([1, 2]), np.array([5, 0])


def _fill(ranks: Pair) -> None:
    rng = np.random.default_rng(7)
    for array in (*ranks.prefill.memory.kv, ranks.prefill.memory.metadata, ranks.prefill.memory.state):
        array[:] = rng.integers(0, 256, array.shape, dtype=np.uint8)


async def _offered(ranks: Pair, room: int) -> tuple[SenderHandle, ReceiverHandle]:
    """A room that is open on both sides, for which decode has offered pages."""
    await ranks.open(room)
    sender, receiver = ranks.prefill.agent.sender(room), ranks.decode.agent.receiver(room)
    await reached(receiver, Phase.WAITING)
    receiver.offer(TARGET, [STATE_TARGET], metadata_row=3)
    return sender, receiver


async def _hand_over(ranks: Pair, room: int) -> tuple[SenderHandle, ReceiverHandle]:
    sender, receiver = ranks.prefill.agent.sender(room), ranks.decode.agent.receiver(room)
    await reached(receiver, Phase.WAITING, Phase.FAILED)
    receiver.offer(TARGET, [STATE_TARGET], metadata_row=3)
    await reached(sender, Phase.WAITING, Phase.FAILED)
    sender.push(SOURCE[:2], last=False)
    sender.push(SOURCE[2:], [STATE_SOURCE], last=True, metadata_row=1)
    return sender, receiver


def _untouched_elsewhere(ranks: Pair) -> bool:
    others = np.setdiff1d(np.arange(48), TARGET)
    return not any(array[others].any() for array in ranks.decode.memory.kv)


@pytest.mark.parametrize("provider", ["tcp", "cma"])
async def test_kv_metadata_and_state_arrive(provider: str) -> None:
    async with pair(provider) as ranks:
        _fill(ranks)
        await ranks.open(11)
        sender, receiver = await _hand_over(ranks, 11)
        assert await reached(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, receiver.why
        assert await reached(sender, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, sender.why
        source, target = ranks.prefill.memory, ranks.decode.memory
        for ours, theirs in zip(source.kv, target.kv, strict=True):
            np.testing.assert_array_equal(theirs[TARGET], ours[SOURCE])
        np.testing.assert_array_equal(target.metadata[3], source.metadata[1])
        np.testing.assert_array_equal(target.state[STATE_TARGET], source.state[STATE_SOURCE])
        assert _untouched_elsewhere(ranks)
        counters = ranks.decode.agent.counters
        assert (counters.kv_bytes, counters.metadata_bytes, counters.kv_chunks) == (5 * 128 + 2 * 24, 16, 2)
        assert (counters.granted_pages, counters.granted_rows, counters.open_rooms) == (0, 0, 0)
        assert counters.links == {"prefill-0": provider}


@pytest.mark.parametrize("provider", ["tcp", "cma"])
async def test_buffers_may_take_turns_however_they_like(provider: str) -> None:
    async with pair(provider) as ranks:
        _fill(ranks)
        sender, receiver = await _offered(ranks, 13)
        sender.push(SOURCE[:2], last=False, kv_buffers=[0])
        sender.push(SOURCE[2:3], last=False, kv_buffers=[0])
        sender.push(SOURCE[:3], last=False, kv_buffers=[1])
        sender.push(SOURCE[3:], [STATE_SOURCE], last=True, metadata_row=1)
        assert await reached(sender, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, sender.why
        assert receiver.phase is Phase.SUCCESS
        for ours, theirs in zip(ranks.prefill.memory.kv, ranks.decode.memory.kv, strict=True):
            np.testing.assert_array_equal(theirs[TARGET], ours[SOURCE])
        assert _untouched_elsewhere(ranks)
        assert ranks.decode.agent.counters.kv_chunks == 4


@pytest.mark.parametrize(
    ("pushes", "said"),
    [
        pytest.param([([0], 2, False), ([0, 1], 3, True)], "not at the same entry", id="buffers that stand apart"),
        pytest.param([([0], 5, True)], "unwritten", id="a buffer that is left out"),
        pytest.param([([0, 0], 5, True)], "buffers", id="a buffer twice"),
        pytest.param([([2], 5, True)], "buffers", id="no such buffer"),
        pytest.param([([-1], 5, True)], "buffers", id="a negative one"),
        pytest.param([([], 5, True)], "buffers", id="none at all"),
        pytest.param([(None, 5, False), ([1], 1, True)], "granted", id="a page over"),
    ],
)
async def test_buffers_that_are_not_pushed_in_order_fail_the_room(
    pushes: list[tuple[list[int] | None, int, bool]], said: str
) -> None:
    async with pair() as ranks:
        _fill(ranks)
        sender, receiver = await _offered(ranks, 14)
        for buffers, count, last in pushes:
            states = [STATE_SOURCE] if last else []
            sender.push(SOURCE[:count], states, last=last, metadata_row=1 if last else None, kv_buffers=buffers)
        assert await reached(sender, Phase.SUCCESS, Phase.FAILED) is Phase.FAILED
        assert await reached(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.FAILED
        assert sender.why is not None
        assert said in sender.why.message
        assert sender.why.reason is ErrorReason.PROTOCOL_VIOLATION
        assert _untouched_elsewhere(ranks)


async def test_chunks_may_come_before_the_offer() -> None:
    async with pair() as ranks:
        _fill(ranks)
        await ranks.open(12)
        sender, receiver = ranks.prefill.agent.sender(12), ranks.decode.agent.receiver(12)
        sender.push(SOURCE, [STATE_SOURCE], last=True, metadata_row=1)
        await reached(receiver, Phase.WAITING, Phase.FAILED)
        receiver.offer(TARGET, [STATE_TARGET], metadata_row=3)
        assert await reached(sender, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, sender.why
        assert receiver.phase is Phase.SUCCESS


async def test_an_offer_before_its_ticket_is_parked() -> None:
    async with pair() as ranks:
        await ranks.decode.agent.open_ticket(ranks.ticket(13, "decode"))
        receiver = ranks.decode.agent.receiver(13)
        await reached(receiver, Phase.WAITING, Phase.FAILED)
        receiver.offer(TARGET, [STATE_TARGET], metadata_row=3)
        await ranks.open_echo()
        await ranks.prefill.agent.open_ticket(ranks.ticket(13, "prefill"))
        sender = ranks.prefill.agent.sender(13)
        assert await reached(sender, Phase.WAITING, Phase.FAILED) is Phase.WAITING


async def test_an_offer_without_a_ticket_is_refused_in_time() -> None:
    quick = RankSettings.load(providers="tcp", park_timeout_ms=100)
    async with pair(prefill=quick) as ranks:
        await ranks.decode.agent.open_ticket(ranks.ticket(14, "decode"))
        receiver = ranks.decode.agent.receiver(14)
        await reached(receiver, Phase.WAITING, Phase.FAILED)
        receiver.offer(TARGET, [STATE_TARGET], metadata_row=3)
        assert await reached(receiver, Phase.FAILED) is Phase.FAILED
        assert receiver.why is not None
        assert receiver.why.reason is ErrorReason.UNKNOWN_ROOM
        assert receiver.quiet


async def test_a_wrong_nonce_is_refused_and_harms_nobody() -> None:
    async with pair() as ranks:
        await ranks.prefill.agent.open_ticket(ranks.ticket(15, "prefill"))
        wrong = Nonce(b"x" * 16)
        await ranks.decode.agent.open_ticket(ranks.ticket(15, "decode", nonce=wrong))
        sender, receiver = ranks.prefill.agent.sender(15), ranks.decode.agent.receiver(15)
        await reached(receiver, Phase.WAITING, Phase.FAILED)
        receiver.offer(TARGET, [STATE_TARGET], metadata_row=3)
        await reached(receiver, Phase.FAILED)
        assert receiver.why is not None
        assert receiver.why.reason is ErrorReason.BAD_NONCE
        assert sender.phase is Phase.BOOTSTRAPPING, "the rightful peer may still come"


async def test_a_flipped_byte_fails_the_room() -> None:
    faulty = RankSettings.load(providers="tcp", fault_flip_chunk=1)
    async with pair(decode=faulty) as ranks:
        _fill(ranks)
        await ranks.open(16)
        sender, receiver = await _hand_over(ranks, 16)
        await reached(receiver, Phase.SUCCESS, Phase.FAILED)
        await reached(sender, Phase.SUCCESS, Phase.FAILED)
        assert receiver.why is not None
        assert receiver.why.reason is ErrorReason.CHECKSUM_MISMATCH
        assert sender.phase is Phase.FAILED
        assert ranks.decode.agent.counters.checksum_failures == 1
        assert ranks.decode.agent.counters.granted_pages == 0


async def test_an_abort_reaches_the_other_side() -> None:
    async with pair() as ranks:
        sender, receiver = await _offered(ranks, 17)
        await reached(sender, Phase.WAITING)
        assert not receiver.quiet
        sender.abort(ErrorReason.CANCELLED, "the client left")
        await reached(sender, Phase.FAILED)
        await reached(receiver, Phase.FAILED)
        assert receiver.quiet
        assert receiver.why is not None
        assert receiver.why.reason is ErrorReason.CANCELLED
        assert receiver.why.by_peer
        assert sender.why is not None
        assert not sender.why.by_peer, "who gave up is not told back that its peer did"


async def test_what_a_rank_heard_from_its_peer_comes_back_as_the_peers_own() -> None:
    """A sibling rank of decode ends its part of the room for what prefill said."""
    async with pair() as ranks:
        sender, receiver = await _offered(ranks, 17)
        await reached(sender, Phase.WAITING)
        receiver.abort(ErrorReason.ENGINE_FAILED, "prefill's engine failed", by_peer=True)
        await reached(sender, Phase.FAILED)
        assert sender.why is not None
        assert not sender.why.by_peer


async def test_a_room_ends_at_its_deadline() -> None:
    async with pair() as ranks:
        await ranks.open(18, timeout_s=0.2)
        sender, receiver = ranks.prefill.agent.sender(18), ranks.decode.agent.receiver(18)
        await reached(sender, Phase.FAILED)
        await reached(receiver, Phase.FAILED)
        assert sender.why is not None
        assert sender.why.reason is ErrorReason.DEADLINE_EXCEEDED


async def test_a_lost_peer_fails_its_rooms_and_a_new_link_serves_the_next() -> None:
    async with pair() as ranks:
        _fill(ranks)
        _, receiver = await _offered(ranks, 19)
        ranks.decode.agent.peer_gone(PREFILL)
        await reached(receiver, Phase.FAILED)
        assert receiver.why is not None
        assert receiver.why.reason is ErrorReason.PEER_LOST
        await ranks.open(20)
        _, receiver = await _hand_over(ranks, 20)
        assert await reached(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, receiver.why


async def test_a_link_to_another_life_is_refused() -> None:
    async with pair() as ranks:
        stale = WorkerLife(PREFILL.worker_id, Incarnation(2))
        ticket = ranks.ticket(21, "decode")
        object.__setattr__(ticket, "peer", stale)
        await ranks.decode.agent.open_ticket(ticket)
        receiver = ranks.decode.agent.receiver(21)
        await reached(receiver, Phase.FAILED)
        assert receiver.why is not None
        assert receiver.why.reason is ErrorReason.STALE_INCARNATION


async def test_an_offer_over_another_workers_link_is_refused() -> None:
    async with pair() as ranks:
        ticket = ranks.ticket(22, "prefill")
        object.__setattr__(ticket, "peer", WorkerLife(DECODE.worker_id, Incarnation(99)))
        await ranks.prefill.agent.open_ticket(ticket)
        await ranks.decode.agent.open_ticket(ranks.ticket(22, "decode"))
        receiver = ranks.decode.agent.receiver(22)
        await reached(receiver, Phase.WAITING)
        receiver.offer(TARGET, [STATE_TARGET], metadata_row=3)
        await reached(receiver, Phase.FAILED)
        assert receiver.why is not None
        assert receiver.why.reason is ErrorReason.STALE_INCARNATION


@pytest.mark.parametrize("provider", ["tcp", "cma"])
async def test_a_hundred_rooms_at_once(provider: str) -> None:
    async with pair(provider) as ranks:
        _fill(ranks)

        async def one(room: int) -> bool:
            page = room % 4
            await ranks.open(room)
            sender, receiver = ranks.prefill.agent.sender(room), ranks.decode.agent.receiver(room)
            await reached(receiver, Phase.WAITING, Phase.FAILED)
            receiver.offer([page], metadata_row=page)
            await reached(sender, Phase.WAITING, Phase.FAILED)
            sender.push([page], last=True, metadata_row=page)
            return await reached(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS

        assert all(await asyncio.gather(*(one(room) for room in range(100, 200))))
        assert ranks.decode.agent.counters.rooms_succeeded == 100


@pytest.mark.parametrize("without", ["prefill", "decode"])
async def test_a_side_without_checksums_and_one_with_them_work_together(without: str) -> None:
    settings = {without: RankSettings.load(providers="tcp", checksum=False)}
    async with pair(**settings) as ranks:
        _fill(ranks)
        await ranks.open(23)
        sender, receiver = await _hand_over(ranks, 23)
        assert await reached(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, receiver.why
        assert await reached(sender, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS


async def test_a_stalled_transfer_holds_its_pages_until_its_lane_is_fenced() -> None:
    """One rank's lane is stuck: its room fails only once nothing can read prefill's pages, or land on decode's."""
    stuck = RankSettings.load(providers="tcp", fault_stall_bytes=0)
    short = RankSettings.load(providers="tcp", fence_ms=200)
    async with pair(decode=stuck, prefill=short) as ranks:
        _fill(ranks)
        await ranks.open(23)
        sender, receiver = await _hand_over(ranks, 23)
        await reached(sender, Phase.TRANSFERRING)
        sender.abort(ErrorReason.TRANSFER_FAILED, "the room failed on another rank")
        assert sender.phase is Phase.TRANSFERRING, "its transfer may still read the pages"
        assert not receiver.quiet, "nobody has closed the grant yet"
        await reached(sender, Phase.FAILED)
        await reached(receiver, Phase.FAILED)
        assert receiver.quiet
        before = [array.copy() for array in ranks.decode.memory.kv]
        for array in ranks.prefill.memory.kv:
            array[:] = 0xEE  # the pages are used again
        await ranks.decode.agent.close()
        for now, then in zip(ranks.decode.memory.kv, before, strict=True):
            np.testing.assert_array_equal(now, then)


MANY = 300_000


def _large() -> tuple[Memory, Memory]:
    return Memory(pages=MANY, page_bytes=4), Memory(pages=2 * MANY, page_bytes=4)


def _scattered() -> np.ndarray:
    """Pages no two of which lie side by side: as many runs, and more than one message of them."""
    return np.random.default_rng(3).permutation(MANY) * 2


@pytest.mark.parametrize("parked", [False, True], ids=["after its ticket", "before its ticket"])
async def test_an_offer_of_many_messages_arrives_whole(parked: bool) -> None:
    target = _scattered()
    async with pair(memories=_large()) as ranks:
        _fill(ranks)
        await ranks.decode.agent.open_ticket(ranks.ticket(30, "decode", timeout_s=50))
        if not parked:
            await ranks.prefill.agent.open_ticket(ranks.ticket(30, "prefill", timeout_s=50))
        receiver = ranks.decode.agent.receiver(30)
        await reached(receiver, Phase.WAITING)
        receiver.offer(target, [STATE_TARGET], metadata_row=3)
        if parked:
            await ranks.open_echo()
            await ranks.prefill.agent.open_ticket(ranks.ticket(30, "prefill", timeout_s=50))
        sender = ranks.prefill.agent.sender(30)
        await reached(sender, Phase.WAITING, Phase.FAILED)
        sender.push(np.arange(MANY), [STATE_SOURCE], last=True, metadata_row=1)
        assert await reached(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, receiver.why
        assert await reached(sender, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, sender.why
        for ours, theirs in zip(ranks.prefill.memory.kv, ranks.decode.memory.kv, strict=True):
            np.testing.assert_array_equal(theirs[target], ours)
            assert not theirs[target + 1].any()


async def test_an_offer_of_many_messages_needs_a_peer_that_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    older = Protocol(1, 0, Feature.CHUNK_CHECKSUM | Feature.DECODE_PREFIX)
    monkeypatch.setattr(version, "CURRENT", older)
    async with pair(memories=_large()) as ranks:
        await ranks.open(31)
        receiver = ranks.decode.agent.receiver(31)
        await reached(receiver, Phase.WAITING)
        receiver.offer(_scattered(), [STATE_TARGET], metadata_row=3)
        await reached(receiver, Phase.FAILED)
        assert receiver.why is not None
        assert receiver.why.reason is ErrorReason.NOT_SUPPORTED
        assert ranks.decode.agent.counters.granted_pages == 0
        await ranks.open(32)
        _, receiver = await _hand_over(ranks, 32)
        assert await reached(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, "what fits goes as before"


async def test_an_abort_in_the_middle_of_an_offer_ends_it_and_the_link_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pair(memories=_large()) as ranks:
        _fill(ranks)
        await ranks.open(33)
        receiver = ranks.decode.agent.receiver(33)
        await reached(receiver, Phase.WAITING)
        collected: list[tuple[int, int]] = []
        make, add = OfferParts.__iter__, OfferCollector.add

        def aborted_after_the_first(self: OfferParts) -> Iterator[kv_link_pb2.OfferPages]:
            for part in make(self):
                if part.part == 1:
                    receiver.abort(ErrorReason.CANCELLED, "the client left")
                yield part

        def noted(self: OfferCollector, part: kv_link_pb2.OfferPages) -> Offer | None:
            collected.append((part.room, part.part))
            return add(self, part)

        monkeypatch.setattr(OfferParts, "__iter__", aborted_after_the_first)
        monkeypatch.setattr(OfferCollector, "add", noted)
        receiver.offer(_scattered(), [STATE_TARGET], metadata_row=3)
        await reached(receiver, Phase.FAILED)
        assert receiver.quiet
        await ranks.open(34)
        _, receiver = await _hand_over(ranks, 34)
        assert await reached(receiver, Phase.SUCCESS, Phase.FAILED) is Phase.SUCCESS, receiver.why
        assert collected == [(33, 0), (34, 0)], "the rest was not sent"
        assert ranks.prefill.agent.counters.stale_messages == 0
