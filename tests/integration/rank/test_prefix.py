"""A room whose prompt decode holds in part: the rest moves, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from tandem.core import version
from tandem.core.errors import ErrorReason
from tandem.core.room.events import Phase
from tandem.core.version import Feature, Protocol
from tandem.engine.rank.handles import ReceiverHandle, SenderHandle
from tandem.engine.rank.receiver_room import ReceiverRoom
from tests.support.rank.pair import Pair, pair, reached

pytestmark = pytest.mark.timeout(60)

PAGE_TOKENS = 8
PROMPT_TOKENS = 2 * PAGE_TOKENS
"""As the tickets of the pair have it."""
KV_PAGE_BYTES = 2 * 64
WINDOW, RECURRENT = np.array([3]), np.array([2])
STATE_BYTES = 24 + 48
OVER = (Phase.SUCCESS, Phase.FAILED)


async def _offered(ranks: Pair, room: int, pages: list[int], prefix: int) -> tuple[SenderHandle, ReceiverHandle]:
    """A room for which decode offers pages behind a prefix; prefill computes once it has the offer."""
    await ranks.open(room)
    sender, receiver = ranks.prefill.agent.sender(room), ranks.decode.agent.receiver(room)
    await reached(receiver, Phase.WAITING)
    receiver.offer(pages, [WINDOW, RECURRENT], metadata_row=1, decode_prefix_len=prefix)
    return sender, receiver


@pytest.mark.parametrize("provider", ["tcp", "cma"])
@pytest.mark.parametrize("held", [0, 1, 2], ids=["nothing is held", "a page is held", "the whole prompt is held"])
async def test_only_the_rest_moves(provider: str, held: int) -> None:
    async with pair(provider) as ranks:
        rng = np.random.default_rng(5)
        for array in (*ranks.prefill.memory.arrays, *ranks.decode.memory.arrays):
            array[:] = rng.integers(0, 256, array.shape, dtype=np.uint8)
        before = [array.copy() for array in ranks.decode.memory.kv]
        source, target = np.array([5, 9]), np.array([40, 7])
        sender, receiver = await _offered(ranks, 1, target[held:].tolist(), held * PAGE_TOKENS)
        await reached(sender, Phase.WAITING)
        assert sender.decode_prefix_len == held * PAGE_TOKENS
        assert ranks.decode.agent.counters.granted_pages == 2 - held, "pages of the prefix are under no grant"
        sender.push(source[held:], [WINDOW, RECURRENT], last=True, metadata_row=2)
        assert await reached(receiver, *OVER) is Phase.SUCCESS, receiver.why
        assert await reached(sender, *OVER) is Phase.SUCCESS, sender.why
        for ours, theirs, old in zip(ranks.prefill.memory.kv, ranks.decode.memory.kv, before, strict=True):
            expected = old
            expected[target[held:]] = ours[source[held:]]
            np.testing.assert_array_equal(theirs, expected)
        np.testing.assert_array_equal(ranks.decode.memory.metadata[1], ranks.prefill.memory.metadata[2])
        counters = ranks.decode.agent.counters
        assert counters.kv_bytes == (2 - held) * KV_PAGE_BYTES + STATE_BYTES
        assert counters.measures.prefix_bytes == held * KV_PAGE_BYTES
        assert (counters.granted_pages, counters.granted_rows) == (0, 0)


async def test_a_prompt_that_is_moved_whole_although_decode_holds_a_page_fails() -> None:
    async with pair() as ranks:
        sender, receiver = await _offered(ranks, 1, [40], PAGE_TOKENS)
        await reached(sender, Phase.WAITING)
        sender.push([5, 9], [WINDOW, RECURRENT], last=True, metadata_row=2)
        assert await reached(receiver, *OVER) is Phase.FAILED
        assert receiver.why is not None
        assert receiver.why.reason is ErrorReason.PROTOCOL_VIOLATION
        assert ranks.decode.agent.counters.measures.prefix_bytes == 0


WRONG = [
    pytest.param(PROMPT_TOKENS + PAGE_TOKENS, "of a prompt of 16", id="longer than the prompt"),
    pytest.param(PAGE_TOKENS + 1, "does not end with a page", id="not whole pages"),
]


@pytest.mark.parametrize(("prefix", "said"), WRONG)
async def test_a_prefix_that_can_not_be_is_not_offered(prefix: int, said: str) -> None:
    async with pair() as ranks:
        _, receiver = await _offered(ranks, 1, [40], prefix)
        assert await reached(receiver, *OVER) is Phase.FAILED
        assert receiver.why is not None
        assert (receiver.why.reason, receiver.why.by_peer) == (ErrorReason.PROTOCOL_VIOLATION, False)
        assert said in receiver.why.message
        assert ranks.decode.agent.counters.granted_pages == 0


@pytest.mark.parametrize(("prefix", "said"), WRONG)
@pytest.mark.parametrize("parked", [False, True], ids=["after its ticket", "before its ticket"])
async def test_prefill_refuses_such_an_offer(
    monkeypatch: pytest.MonkeyPatch, prefix: int, said: str, parked: bool
) -> None:
    monkeypatch.setattr(ReceiverRoom, "_check_prefix", lambda *_: None)
    async with pair() as ranks:
        await ranks.decode.agent.open_ticket(ranks.ticket(1, "decode"))
        if not parked:
            await ranks.prefill.agent.open_ticket(ranks.ticket(1, "prefill"))
        receiver = ranks.decode.agent.receiver(1)
        await reached(receiver, Phase.WAITING)
        receiver.offer([40], [WINDOW, RECURRENT], metadata_row=1, decode_prefix_len=prefix)
        if parked:
            await ranks.open_echo()
            await ranks.prefill.agent.open_ticket(ranks.ticket(1, "prefill"))
        assert await reached(receiver, *OVER) is Phase.FAILED
        assert receiver.why is not None
        assert (receiver.why.reason, receiver.why.by_peer) == (ErrorReason.PROTOCOL_VIOLATION, True)
        assert said in receiver.why.message
        assert ranks.prefill.agent.sender(1).phase is Phase.BOOTSTRAPPING, "the offer came to nothing"


async def test_a_peer_that_does_not_know_prefixes_is_offered_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "CURRENT", Protocol(1, 0, Feature.CHUNK_CHECKSUM))
    async with pair() as ranks:
        _, receiver = await _offered(ranks, 1, [40], PAGE_TOKENS)
        assert await reached(receiver, *OVER) is Phase.FAILED
        assert receiver.why is not None
        assert receiver.why.reason is ErrorReason.NOT_SUPPORTED
        sender, _ = await _offered(ranks, 2, [40, 41], 0)
        assert await reached(sender, Phase.WAITING, Phase.FAILED) is Phase.WAITING, "a whole prompt goes as before"
