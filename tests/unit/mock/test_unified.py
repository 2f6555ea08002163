"""The mock as a unified engine: the answers of a pair, one Finish per room, and every page comes back."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
import pytest_asyncio

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Incarnation, Nonce, RankId, RequestId, Role, RoomId, WorkerId, WorkerLife
from tandem.core.room.events import Why
from tandem.engine.mock.engine import MockEngine
from tandem.engine.mock.settings import MockSettings
from tandem.engine.port import FinishKind, Job, LogprobOptions, Sampling
from tests.support.mock.pair import Leg, oracle_of, prompt_of, settings_of

LONG = Sampling(max_new_tokens=40, ignore_eos=True)
CANCELLED = Why(ErrorReason.CANCELLED, "the client left")
NOBODY = WorkerLife(WorkerId(""), Incarnation(0))


class Alone:
    """One engine."""

    def __init__(self, settings: MockSettings) -> None:
        self.settings = settings
        self.engine = MockEngine(settings, Role.UNIFIED)
        self._rooms = itertools.count(1)

    async def ask(self, prompt: Sequence[int], sampling: Sampling = LONG, **changes: Any) -> Leg:
        leg = Leg(RoomId(next(self._rooms)))
        deadline = time.monotonic() + changes.pop("timeout_s", 30.0)
        fields: dict[str, Any] = {"request_id": RequestId("r"), "room": leg.room, "nonce": Nonce(b"n" * 16)}
        fields |= {"peer": NOBODY, "peer_addresses": {}, "deadline": deadline}
        await self.engine.submit(Job(**fields, input_ids=list(prompt), sampling=sampling, **changes), leg.sink)
        return leg

    async def idle(self) -> None:
        """It holds nothing."""
        status = await self.engine.status()
        assert (status.running, status.waiting, status.open_rooms) == (0, 0, 0), status
        assert all(pool.free + pool.evictable == pool.total and pool.granted == 0 for pool in status.pools), status


Start = Callable[..., Awaitable[Alone]]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """Starts engines with changed settings; closes them at the end."""
    found: list[Alone] = []

    async def one(**changes: Any) -> Alone:
        found.append(Alone(settings_of(**changes)))
        await found[-1].engine.start()
        return found[-1]

    yield one
    for alone in found:
        await alone.engine.close()


async def test_what_it_registers_moves_nowhere() -> None:
    engine = MockEngine(settings_of(tp_size=2, pages=32), Role.UNIFIED)
    facts = await engine.start()
    assert [(info.rank, info.kv_link_address) for info in facts.ranks] == [(RankId(tp=0), ""), (RankId(tp=1), "")]
    assert (facts.layout.pools, facts.layout.tp_size, facts.total_pages) == ((), 2, 32)
    await engine.close()


@pytest.mark.parametrize("tp_size", [1, 2])
async def test_answers_are_those_of_a_pair(start: Start, tp_size: int) -> None:
    alone = await start(tp_size=tp_size, chunk_tokens=6, max_waiting=64)
    oracle = oracle_of(alone.settings)
    prompts = [prompt_of(seed, 1 + 3 * seed) for seed in range(24)]
    legs = [await alone.ask(prompt) for prompt in prompts]
    for leg, prompt in zip(legs, prompts, strict=True):
        assert (await leg.finish()).kind is FinishKind.LENGTH
        wanted = oracle.predict(prompt, 40, ignore_eos=True)
        assert (leg.tokens, leg.text) == (wanted.tokens, wanted.text)
    await alone.idle()
    assert (await alone.engine.status()).rooms_succeeded == 24


async def test_log_probabilities_of_prompt_and_answer(start: Start) -> None:
    alone = await start()
    leg = await alone.ask([5, 6, 7], Sampling(max_new_tokens=4, ignore_eos=True), logprobs=LogprobOptions(2, True, 1))
    await leg.finish()
    assert [one.token_id for delta in leg.deltas for one in delta.prompt_logprobs] == [6, 7]
    assert [one.token_id for delta in leg.deltas for one in delta.logprobs] == leg.tokens


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34])
async def test_abort_at_any_moment(start: Start, turns: int) -> None:
    alone = await start(chunk_tokens=4)
    leg = await alone.ask(prompt_of(3, 30))
    for _ in range(turns):
        await asyncio.sleep(0)
    ended = leg.ended.is_set()
    assert await alone.engine.abort(leg.room, CANCELLED) is not ended
    finish = await leg.finish()
    assert finish.why == (None if ended else CANCELLED)
    assert not await alone.engine.abort(leg.room, CANCELLED)
    other = await alone.ask(prompt_of(4, 30))
    assert (await other.finish()).kind is FinishKind.LENGTH
    assert other.tokens == oracle_of(alone.settings).predict(prompt_of(4, 30), 40, ignore_eos=True).tokens
    await alone.idle()


async def test_a_room_ends_at_its_deadline(start: Start) -> None:
    alone = await start(decode_us_per_step=50_000)
    finish = await (await alone.ask([1, 2], timeout_s=0.1)).finish()
    assert finish.why is not None
    assert finish.why.reason is ErrorReason.DEADLINE_EXCEEDED
    await alone.idle()


async def test_a_room_that_never_fits_is_refused(start: Start) -> None:
    alone = await start(pages=8)
    with pytest.raises(TandemError) as caught:
        await alone.ask(prompt_of(1, 10))
    assert caught.value.reason is ErrorReason.POOL_EXHAUSTED


async def test_closing_ends_what_runs(start: Start) -> None:
    alone = await start(decode_us_per_step=1_000_000)
    leg = await alone.ask([1, 2])
    await alone.engine.close()
    finish = await leg.finish()
    assert finish.why is not None
    assert finish.why.reason is ErrorReason.DRAINING
