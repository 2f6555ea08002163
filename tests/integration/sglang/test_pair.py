"""Real SGLang, prefill in one process and decode in another, on the tiny model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio

from tests.support.sglang import installed
from tests.support.sglang.asking import greedy, prompt, whole
from tests.support.sglang.pair import TINY, Pair

installed.require()

pytestmark = [pytest.mark.sglang, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]
TOKEN_BYTES = 4 * 2 * 2 * 32 * 4
"""Layers, keys and values, heads, head size, float32."""
LENGTHS = (1, 3, 17, 64, 257, 700)
CHUNK = 256


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """A pair with chunked prefill; it must end cleanly."""
    made = Pair(tmp_path_factory.mktemp("pair"))
    await made.start(chunked_prefill_tokens=CHUNK)
    yield made
    assert await made.stop() == [0, 0]


async def test_answers_are_those_of_the_model_and_nothing_was_recomputed(pair: Pair) -> None:
    prompts = [prompt(length, salt) for salt, length in enumerate(LENGTHS)]
    expected = greedy(TINY, prompts, 16)
    before = await pair.decode.idle()
    for ids, tokens in zip(prompts, expected, strict=True):
        answer = await pair.answer(pair.submit(ids, max_new_tokens=16))
        assert answer.token_ids == tokens
        assert answer.finish["kind"] == "length"
    after = await pair.decode.idle()
    assert after["kv_bytes"] - before["kv_bytes"] == sum(LENGTHS) * TOKEN_BYTES
    chunks = sum(math.ceil(length / CHUNK) for length in LENGTHS)
    assert after["kv_chunks"] - before["kv_chunks"] == chunks
    await whole(pair, "kv", "metadata")


async def test_eight_at_once_get_the_same_answers(pair: Pair) -> None:
    prompts = [prompt(40 + 11 * salt, 100 + salt) for salt in range(8)]
    expected = greedy(TINY, prompts, 12)
    rooms = [pair.submit(ids, max_new_tokens=12) for ids in prompts]
    answers = await asyncio.gather(*(pair.answer(room) for room in rooms))
    assert [answer.token_ids for answer in answers] == expected
    await whole(pair, "kv", "metadata")


async def test_prefill_says_the_first_token_where_it_is_asked_to(pair: Pair) -> None:
    ids = prompt(CHUNK + 9, 61)
    asked, unasked = pair.submit(ids, max_new_tokens=4, early=True), pair.submit(ids, max_new_tokens=4)
    answer, other = await pair.answer(asked), await pair.answer(unasked)
    said = pair.prefill.answers[asked]
    assert said.token_ids == answer.token_ids[:1]
    assert said.text
    assert answer.text.startswith(said.text)
    assert (answer.token_ids, answer.text) == (other.token_ids, other.text), "decode says all of it in any case"
    assert pair.prefill.answers[unasked].token_ids == []

    ended = pair.submit(ids, max_new_tokens=4, early=True, ignore_eos=False, stop_token_ids=answer.token_ids[:1])
    stopped = await pair.answer(ended)
    assert (stopped.finish["kind"], stopped.text) == ("stop", "")
    assert pair.prefill.answers[ended].token_ids == [], "a token that ends the answer is decode's to say"
    await whole(pair, "kv", "metadata")


async def test_logprobs_of_prompt_and_answer(pair: Pair) -> None:
    ids = prompt(9, 31)
    asked = {"top": 2, "prompt": True, "prompt_start": 0}
    room = pair.submit(ids, max_new_tokens=3, logprobs=asked)
    answer = await pair.answer(room)
    assert [item["token_id"] for item in answer.logprobs] == answer.token_ids
    assert all(item["logprob"] <= 0 and len(item["top"]) == 2 for item in answer.logprobs)
    assert answer.logprobs[0]["top"][0][0] == answer.token_ids[0], "the first token's come with the metadata row"
    assert [item["token_id"] for item in pair.prefill.answers[room].prompt_logprobs] == ids


async def test_cancel_while_it_decodes_frees_everything(pair: Pair) -> None:
    room = pair.submit(prompt(50, 41), max_new_tokens=3_000)
    await pair.decode.answers[room].began.wait()
    pair.decode.send(do="abort", room=room)
    answer = await pair.answer(room)
    assert (answer.finish["kind"], answer.finish["why"][0]) == ("failed", "CANCELLED")
    await whole(pair, "kv", "metadata")


async def test_cancel_of_a_long_prompt_frees_everything(pair: Pair) -> None:
    rooms = [pair.submit(prompt(3_000, 50 + salt), max_new_tokens=4) for salt in range(3)]
    for room in rooms:
        pair.prefill.send(do="abort", room=room)
    answers = await asyncio.gather(*(pair.answer(room) for room in rooms))
    assert {answer.finish["kind"] for answer in answers} == {"failed"}
    await whole(pair, "kv", "metadata")


async def test_leg_without_its_other_half_ends_at_its_deadline(pair: Pair) -> None:
    room = 4_711
    pair.decode.send(
        do="submit",
        room=room,
        nonce="00" * 16,
        input_ids=[7, 8],
        sampling={"max_new_tokens": 2},
        peer="prefill",
        addresses=pair.addresses,
        timeout_ms=1_500,
    )
    answer = pair.decode.answers[room]
    await answer.ended.wait()
    assert answer.finish["kind"] == "failed"
    await whole(pair, "kv", "metadata")


async def test_prompt_that_does_not_fit_is_refused(pair: Pair) -> None:
    answer = await pair.answer(pair.submit(prompt(4_096), max_new_tokens=1))
    assert answer.finish["why"][0] == "CONTEXT_TOO_LONG"


async def test_dead_scheduler_ends_its_worker_and_the_rooms_of_the_other(pair: Pair, tmp_path: Any) -> None:
    lone = Pair(tmp_path)
    lone.decode = pair.decode
    await lone.prefill.start({"model_path": str(TINY), "dtype": "float32", "device": "cpu"}, {})
    room = lone.submit(prompt(3_500, 77), max_new_tokens=4)
    schedulers = [
        child
        for child in psutil.Process(lone.prefill.process.pid).children(recursive=True)
        if "scheduler" in " ".join(child.cmdline())
    ]
    assert schedulers
    schedulers[0].kill()
    assert await lone.prefill.process.wait() == 3
    await lone.decode.answers[room].ended.wait()
    finish = lone.decode.answers[room].finish
    assert finish["kind"] == "failed"
    assert finish["why"][0] in {"LINK_LOST", "PEER_LOST"}
