"""Prefill's prefix cache: answers stay those of the oracle, what is cached is not computed again, no page is lost."""

from __future__ import annotations

import random

import pytest

from tandem.core.errors import ErrorReason
from tandem.core.ids import Incarnation, WorkerId, WorkerLife
from tandem.core.kv_index import KvIndex
from tandem.core.room.events import Why
from tandem.engine.port import FinishKind, Sampling
from tests.support.mock.pair import Pair, Room, oracle_of, prompt_of

SHORT = Sampling(max_new_tokens=6, ignore_eos=True)
LIFE = WorkerLife(WorkerId("p"), Incarnation(1))


async def answered(pair: Pair, prompt: list[int]) -> Room:
    """One room to its end, with the answer that the oracle predicts."""
    room = await pair.ask(prompt, SHORT)
    await room.decode.finish()
    assert (await room.prefill.finish()).kind is FinishKind.HANDED_OVER
    assert room.decode.tokens == oracle_of(pair.settings).predict(prompt, 6, ignore_eos=True).tokens
    return room


@pytest.mark.parametrize("layers_per_push", [0, 1])
@pytest.mark.parametrize("chunk_tokens", [3, 64])
async def test_what_prompts_begin_with_alike_is_computed_once(start_pair, layers_per_push, chunk_tokens) -> None:
    pair = await start_pair(prefix_cache=True, layers_per_push=layers_per_push, chunk_tokens=chunk_tokens)
    prompt = prompt_of(1, 30)
    for asked, cached in (
        (prompt, 0),
        (prompt, 28),  # its full pages
        (prompt[:28], 24),  # one token at least is computed
        (prompt + prompt_of(2, 20), 28),
        (prompt[:13] + prompt_of(3, 9), 12),
        (prompt_of(4, 30), 0),
    ):
        room = await answered(pair, asked)
        assert (await room.prefill.finish()).cached_tokens == cached
        assert (await room.decode.finish()).cached_tokens == cached
    prefill, decode = await pair.idle()
    assert prefill.pools[0].evictable == len(pair.prefill.held_pages.pages) > 0
    assert decode.pools[0].evictable == 0


async def test_without_the_setting_nothing_is_kept(start_pair) -> None:
    pair = await start_pair()
    for _ in range(2):
        assert (await (await answered(pair, prompt_of(1, 30))).decode.finish()).cached_tokens == 0
    assert not pair.prefill.held_pages.pages


async def test_more_prompts_than_fit_at_once_and_one_after_the_other(start_pair) -> None:
    pair = await start_pair(prefix_cache=True, pages=24, max_waiting=64)
    index, dice = KvIndex(1000), random.Random(3)
    follower = pair.prefill.held_pages.follow(lambda: None)
    stems = [prompt_of(seed, 24) for seed in range(6)]
    cached = 0
    for _ in range(10):
        prompts = [dice.choice(stems)[: dice.randrange(1, 25)] + prompt_of(dice.randrange(9), 3) for _ in range(4)]
        rooms = [await pair.ask(prompt, SHORT) for prompt in prompts]
        for room, prompt in zip(rooms, prompts, strict=True):
            cached += (await room.decode.finish()).cached_tokens
            assert room.decode.tokens == oracle_of(pair.settings).predict(prompt, 6, ignore_eos=True).tokens
            await room.prefill.finish()
        while (change := follower.take(7)) is not None:
            assert index.apply(LIFE, change)
        prefill, _ = await pair.idle()
        assert index.entries == prefill.pools[0].evictable, "a follower knows what is held"
    assert cached > 0


async def test_a_prompt_that_failed_leaves_nothing_in_the_cache(start_pair) -> None:
    pair = await start_pair(prefix_cache=True, prefill_us_per_token=1000)
    room = await pair.ask(prompt_of(1, 100), SHORT)
    await pair.abort(room.room, Why(ErrorReason.CANCELLED, "the client left"))
    assert (await room.prefill.finish()).kind is FinishKind.FAILED
    assert not pair.prefill.held_pages.pages
    await pair.idle()
