"""The mock engines over real ranks: KvLink over gRPC on loopback, data over tcp and over cma."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from tandem.core.errors import ErrorReason
from tandem.core.room.events import Why
from tandem.engine.mock.rank_port import agents
from tandem.engine.port import FinishKind, Sampling
from tandem.engine.rank.settings import RankSettings
from tests.support.mock.pair import Pair, oracle_of, prompt_of, settings_of

StartPair = Callable[..., Awaitable[Pair]]


@pytest.fixture(params=["tcp", "cma"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture
async def start_pair(provider: str) -> AsyncIterator[StartPair]:
    """Starts a pair over one provider."""
    pairs: list[Pair] = []

    async def start(rank_settings: dict[str, Any] | None = None, **changes: Any) -> Pair:
        make = agents(RankSettings(providers=provider, **(rank_settings or {})))
        pairs.append(Pair(settings_of(**changes), make))
        return await pairs[-1].start()

    yield start
    for pair in pairs:
        await pair.close()


@pytest.mark.parametrize("tp_size", [1, 2])
async def test_oracle_predicts_answers_over_real_links(start_pair: StartPair, provider: str, tp_size: int) -> None:
    pair = await start_pair(tp_size=tp_size, chunk_tokens=16, max_waiting=32)
    oracle = oracle_of(pair.settings)
    prompts = [prompt_of(seed, 1 + 9 * seed) for seed in range(12)]
    rooms = [await pair.ask(prompt, Sampling(max_new_tokens=20, ignore_eos=True)) for prompt in prompts]
    for room, prompt in zip(rooms, prompts, strict=True):
        assert (await room.decode.finish()).kind is FinishKind.LENGTH
        assert (await room.prefill.finish()).kind is FinishKind.HANDED_OVER
        predicted = oracle.predict(prompt, 20, ignore_eos=True)
        assert (room.decode.tokens, room.decode.text) == (predicted.tokens, predicted.text)
    prefill, decode = await pair.idle()
    pages = sum(-(-len(prompt) // 4) for prompt in prompts)
    assert decode.kv_bytes == pages * 4 * 64 * tp_size
    assert decode.checksum_failures == 0
    assert decode.links == {"prefill-1": provider}
    assert decode.traffic == {("prefill-1", provider): decode.kv_bytes + decode.metadata_bytes}
    assert prefill.traffic == {("decode-1", provider): decode.kv_bytes + decode.metadata_bytes}


async def test_oracle_predicts_answers_pushed_layer_by_layer(start_pair: StartPair) -> None:
    pair = await start_pair(tp_size=2, layers=3, chunk_tokens=16, layers_per_push=1, max_waiting=32)
    oracle = oracle_of(pair.settings)
    prompts = [prompt_of(seed, 1 + 9 * seed) for seed in range(6)]
    rooms = [await pair.ask(prompt, Sampling(max_new_tokens=20, ignore_eos=True)) for prompt in prompts]
    for room, prompt in zip(rooms, prompts, strict=True):
        assert (await room.decode.finish()).kind is FinishKind.LENGTH, room.decode
        assert (await room.prefill.finish()).kind is FinishKind.HANDED_OVER, room.prefill
        assert room.decode.tokens == oracle.predict(prompt, 20, ignore_eos=True).tokens
    _, decode = await pair.idle()
    chunks = sum(-(-len(prompt) // 16) for prompt in prompts)
    assert decode.kv_chunks == chunks * 3 * 2, "each chunk in three pushes, on two ranks"


async def test_a_flipped_byte_fails_and_does_not_answer(start_pair: StartPair) -> None:
    pair = await start_pair({"fault_flip_chunk": 1}, chunk_tokens=8)
    room = await pair.ask(prompt_of(1, 30), Sampling(max_new_tokens=20, ignore_eos=True))
    finish = await room.decode.finish()
    assert finish.kind is FinishKind.FAILED
    assert finish.why is not None
    assert finish.why.reason is ErrorReason.CHECKSUM_MISMATCH
    assert room.decode.tokens == []
    assert (await room.prefill.finish()).kind is FinishKind.FAILED
    await pair.idle()


@pytest.mark.parametrize("delay_turns", [0, 3, 10, 30, 60, 100])
async def test_aborts_leak_nothing(start_pair: StartPair, delay_turns: int) -> None:
    pair = await start_pair(tp_size=2, chunk_tokens=4, max_waiting=32)
    rooms = [await pair.ask(prompt_of(seed, 100), Sampling(max_new_tokens=20)) for seed in range(4)]
    for _ in range(delay_turns):
        await asyncio.sleep(0)
    for room in rooms:
        await pair.abort(room.room, Why(ErrorReason.CANCELLED, "the client left"))
    for room in rooms:
        await room.decode.finish()
        await room.prefill.finish()
    await pair.idle()


@pytest.mark.parametrize("tp_size", [1, 2])
async def test_only_the_rest_of_a_kept_prompt_moves_over_real_links(start_pair: StartPair, tp_size: int) -> None:
    pair = await start_pair(tp_size=tp_size, chunk_tokens=16, keep_prefixes=True)
    oracle = oracle_of(pair.settings)
    talk, held, moved = prompt_of(1, 30), 0, 0
    for said in (5, 26, 2):
        room = await pair.ask(talk, Sampling(max_new_tokens=20, ignore_eos=True))
        assert (await room.decode.finish()).kind is FinishKind.LENGTH, room.decode
        assert (await room.prefill.finish()).kind is FinishKind.HANDED_OVER
        assert room.decode.tokens == oracle.predict(talk, 20, ignore_eos=True).tokens
        _, decode = await pair.idle()
        before, moved = moved, decode.kv_bytes
        assert moved - before == (-(-len(talk) // 4) - held) * 4 * 64 * tp_size
        talk = talk + room.decode.tokens
        held = (len(talk) - 1) // 4
        talk += prompt_of(said, said)
    reports = (await pair.decode.measured()).ranks
    assert {report.measures.prefix_bytes for report in reports} == {(49 // 4 + 74 // 4) * 4 * 64}


async def test_a_flipped_byte_behind_a_kept_prefix_fails_and_the_next_room_is_right(start_pair: StartPair) -> None:
    pair = await start_pair({"fault_flip_chunk": 3}, chunk_tokens=8, keep_prefixes=True)
    oracle = oracle_of(pair.settings)
    prompt = prompt_of(1, 16)
    sampling = Sampling(max_new_tokens=9, ignore_eos=True)
    await (await pair.ask(prompt, sampling)).decode.finish()
    longer = prompt + prompt_of(2, 50)
    room = await pair.ask(longer, sampling)
    finish = await room.decode.finish()
    assert finish.why is not None
    assert finish.why.reason is ErrorReason.CHECKSUM_MISMATCH
    await room.prefill.finish()
    await pair.idle()
    room = await pair.ask(longer, sampling)
    assert (await room.decode.finish()).kind is FinishKind.LENGTH
    assert room.decode.tokens == oracle.predict(longer, 9, ignore_eos=True).tokens
    await room.prefill.finish()
    await pair.idle()
