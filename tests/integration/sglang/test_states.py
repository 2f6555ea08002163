"""Real SGLang, prefill and decode apart, on models that hand over more than keys and values.

A model with windowed layers has a component of window pages, one with short convolutions has one state per sequence.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.settings import python_path
from tests.support.sglang import checkpoints, installed
from tests.support.sglang.asking import greedy, prompt, whole
from tests.support.sglang.pair import Pair
from tests.support.sglang.stand_ins.spoiled import DROPPED_TOKENS, FLIPPED_TOKENS

installed.require()

pytestmark = [pytest.mark.sglang, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]
CHUNK = 64
"""Longer than the window: a window lies in one chunk or across two."""
LENGTHS = (2, 31, 32, 33, 64, 70, 130, 700)
FLOAT_BYTES = 4
KV_TOKEN_BYTES = 2 * 2 * checkpoints.KV_HEADS * checkpoints.HEAD_SIZE * FLOAT_BYTES
"""Of the two layers that see everything: keys and values, heads, head size."""


@dataclass(frozen=True)
class Model:
    """A checkpoint, and what of it moves."""

    make: Callable[[Path], Path]
    pool: str
    state_bytes: Callable[[int], int]
    """Of a prompt of so many tokens that decode does not hold already."""
    decode_remembers: bool
    """Whether decode keeps prefixes, too; SGLang does so for windows."""


def window_bytes(tokens: int) -> int:
    """The windowed layers' keys and values of the last window."""
    return min(tokens, checkpoints.WINDOW_TOKENS) * KV_TOKEN_BYTES


def conv_bytes(tokens: int) -> int:
    """The last inputs of both convolutions."""
    return 2 * checkpoints.HIDDEN * (checkpoints.CONV_TOKENS - 1) * FLOAT_BYTES


MODELS = {
    "window": Model(checkpoints.windowed, "state:0:swa", window_bytes, True),
    "convolution": Model(checkpoints.short_conv, "state:0:mamba", conv_bytes, False),
}


@dataclass(frozen=True)
class Running:
    """A pair on a model."""

    model: Model
    checkpoint: Path
    pair: Pair


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=MODELS)
async def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A pair with chunked prefill on each model in turn; it must end cleanly."""
    model = MODELS[request.param]
    checkpoint = model.make(tmp_path_factory.mktemp(f"checkpoint-{request.param}"))
    pair = Pair(tmp_path_factory.mktemp(f"pair-{request.param}"))
    stand_ins = Path(checkpoints.__file__).parent / "stand_ins"
    env = {"PYTHONPATH": python_path(stand_ins, checkpoints.ROOT), "SGLANG_MAMBA_CONV_DTYPE": "float32"}
    engine_args = ["disaggregation-decode-enable-radix-cache=true"] if model.decode_remembers else []
    await pair.start(env=env, model_path=str(checkpoint), chunked_prefill_tokens=CHUNK, engine_args=engine_args)
    yield Running(model, checkpoint, pair)
    assert await pair.stop() == [0, 0]


async def test_answers_are_those_of_the_model_and_just_the_states_were_moved(running: Running) -> None:
    prompts = [prompt(length, salt) for salt, length in enumerate(LENGTHS)]
    moved = (await running.pair.decode.idle())["kv_bytes"]
    for ids, tokens in zip(prompts, greedy(running.checkpoint, prompts, 40), strict=True):
        answer = await running.pair.answer(running.pair.submit(ids, max_new_tokens=40))
        assert (len(ids), answer.token_ids) == (len(ids), tokens)
        before, moved = moved, (await running.pair.decode.idle())["kv_bytes"]
        assert moved - before == len(ids) * KV_TOKEN_BYTES + running.model.state_bytes(len(ids))
    await whole(running.pair, "kv", "metadata", running.model.pool)


async def test_six_at_once_and_a_prompt_that_is_known_in_part(running: Running) -> None:
    prompts = [prompt(40 + 17 * salt, 100 + salt) for salt in range(6)]
    prompts += [prompts[-1] + [7, 9, 11]]
    expected = greedy(running.checkpoint, prompts, 12)
    rooms = [running.pair.submit(ids, max_new_tokens=12) for ids in prompts[:-1]]
    answers = list(await asyncio.gather(*(running.pair.answer(room) for room in rooms)))
    before = (await running.pair.decode.idle())["kv_bytes"]
    answers.append(await running.pair.answer(running.pair.submit(prompts[-1], max_new_tokens=12)))
    assert [answer.token_ids for answer in answers] == expected
    moved = (await running.pair.decode.idle())["kv_bytes"] - before
    unknown = 3 if running.model.decode_remembers else len(prompts[-1])
    assert moved == unknown * KV_TOKEN_BYTES + running.model.state_bytes(unknown)
    await whole(running.pair, "kv", "metadata", running.model.pool)


async def test_one_byte_of_a_state_makes_another_answer(running: Running) -> None:
    ids = prompt(FLIPPED_TOKENS, 200)
    (expected,) = greedy(running.checkpoint, [ids], 12)
    answer = await running.pair.answer(running.pair.submit(ids, max_new_tokens=12))
    assert answer.finish["kind"] == "length"
    assert answer.token_ids[0] == expected[0], "prefill's own, from before its state was spoiled"
    assert answer.token_ids != expected


async def test_a_room_without_its_states_fails(running: Running) -> None:
    answer = await running.pair.answer(running.pair.submit(prompt(DROPPED_TOKENS, 300), max_new_tokens=12))
    assert (answer.finish["kind"], answer.finish["why"][0], answer.token_ids) == ("failed", "PROTOCOL_VIOLATION", [])
    await whole(running.pair, "kv", "metadata", running.model.pool)
