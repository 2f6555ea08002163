"""Real SGLang whose decode side keeps prefixes: only the rest of a prompt moves, and no answer changes. The two sides
also change places."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from tests.support.sglang import installed
from tests.support.sglang.asking import greedy, prompt, whole
from tests.support.sglang.pair import TINY, Pair

installed.require()

pytestmark = [pytest.mark.sglang, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]
PAGE_TOKENS = 16
PAGE_BYTES = PAGE_TOKENS * 4 * 2 * 2 * 32 * 4
"""Layers, keys and values, heads, head size, float32."""
CHUNK = 64
POOL_TOKENS = 8_192
NEW_TOKENS = 24
DAMAGED_CHUNK = 30
"""Only prompts of more than 30 chunks have one with this number."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """A pair with chunked prefill; the chunk with a certain number is damaged on its way. It must end cleanly."""
    made = Pair(tmp_path_factory.mktemp("pair"))
    env = {"TANDEM_RANK_FAULT_FLIP_CHUNK": str(DAMAGED_CHUNK), "TANDEM_RANK_FAULT_FLIP_TIMES": "1000000"}
    await made.start(
        env=env,
        page_size=PAGE_TOKENS,
        chunked_prefill_tokens=CHUNK,
        max_total_tokens=POOL_TOKENS,
        keep_prefixes=True,
        role_switch=True,
    )
    yield made
    assert await made.stop() == [0, 0]


def pages(tokens: int) -> int:
    """Pages that a prompt fills."""
    return -(-tokens // PAGE_TOKENS)


async def ask(pair: Pair, ids: list[int], new_tokens: int = NEW_TOKENS) -> tuple[list[int], int]:
    """The answer, and how many pages moved for it."""
    before = (await pair.decode.idle())["kv_bytes"]
    answer = await pair.answer(pair.submit(ids, max_new_tokens=new_tokens))
    assert answer.finish["kind"] == "length", answer.finish
    moved, left = divmod((await pair.decode.idle())["kv_bytes"] - before, PAGE_BYTES)
    assert left == 0
    return answer.token_ids, moved


async def test_turns_of_a_conversation_move_what_is_new_and_answer_as_the_model(pair: Pair) -> None:
    talk, held = prompt(201, 1), 0
    for turn, said in enumerate((0, 8, 100, 33)):
        if turn:
            talk = talk + prompt(said, 50 + turn)
        (expected,) = greedy(TINY, [talk], NEW_TOKENS)
        tokens, moved = await ask(pair, talk)
        assert tokens == expected, f"turn {turn}"
        assert moved == pages(len(talk)) - held, f"turn {turn}"
        talk = talk + tokens
        # Whether the last token of an answer was computed too is SGLang's to know: none of these ends a page.
        assert len(talk) % PAGE_TOKENS
        held = len(talk) // PAGE_TOKENS
    await whole(pair, "kv", "metadata")


@pytest.mark.parametrize("length", [16, 17, 128])
async def test_the_same_prompt_again(pair: Pair, length: int) -> None:
    ids = prompt(length, 100 + length)
    (expected,) = greedy(TINY, [ids], NEW_TOKENS)
    assert await ask(pair, ids) == (expected, pages(length))
    assert await ask(pair, ids) == (expected, pages(length) - length // PAGE_TOKENS), (
        "16 and 128 move a first token only"
    )
    await whole(pair, "kv", "metadata")


async def test_prompts_that_share_a_beginning_at_once(pair: Pair) -> None:
    start = prompt(96, 200)
    asked = [start + prompt(10 + 9 * salt, 210 + salt) for salt in range(4)]
    expected = greedy(TINY, [start, *asked], 12)
    assert (await ask(pair, start, 12))[0] == expected[0]
    before = (await pair.decode.idle())["kv_bytes"]
    answers = await asyncio.gather(*(pair.answer(pair.submit(ids, max_new_tokens=12)) for ids in asked))
    assert [answer.token_ids for answer in answers] == expected[1:]
    moved = (await pair.decode.idle())["kv_bytes"] - before
    assert moved == sum(pages(len(ids)) - pages(len(start)) for ids in asked) * PAGE_BYTES
    await whole(pair, "kv", "metadata")


async def test_a_room_that_fails_in_the_middle_leaves_the_prefix_right(pair: Pair) -> None:
    start = prompt(160, 300)
    (first,) = greedy(TINY, [start], NEW_TOKENS)
    assert (await ask(pair, start))[0] == first
    long = start + prompt(CHUNK * (DAMAGED_CHUNK + 8), 301)
    answer = await pair.answer(pair.submit(long, max_new_tokens=4))
    assert (answer.finish["kind"], answer.finish["why"][0]) == ("failed", "CHECKSUM_MISMATCH")
    await whole(pair, "kv", "metadata")
    # What landed of the failed room is part of no prefix: its beginning moves, and the answers are right.
    later = long[: CHUNK * 10]
    (expected,) = greedy(TINY, [later], NEW_TOKENS)
    assert await ask(pair, later) == (expected, pages(len(later)) - len(start) // PAGE_TOKENS)
    await whole(pair, "kv", "metadata")


async def test_rooms_that_are_cancelled_with_a_held_prefix_leave_nothing(pair: Pair) -> None:
    start = prompt(128, 400)
    (expected,) = greedy(TINY, [start + prompt(40, 401)], NEW_TOKENS)
    await ask(pair, start)
    for sides in ((pair.prefill, pair.decode), (pair.decode, pair.prefill)):
        rooms = [pair.submit(start + prompt(900, 410 + salt), max_new_tokens=4) for salt in range(3)]
        for side in sides:
            for room in rooms:
                side.send(do="abort", room=room)
        answers = await asyncio.gather(*(pair.answer(room) for room in rooms))
        assert {answer.finish["kind"] for answer in answers} == {"failed"}
        await whole(pair, "kv", "metadata")
    tokens, moved = await ask(pair, start + prompt(40, 401))
    assert (tokens, moved) == (expected, pages(168) - pages(128))


@pytest.mark.long
async def test_prefixes_go_when_their_pages_are_needed(pair: Pair) -> None:
    asked = [prompt(1_500, 500 + salt) for salt in range(6)]
    expected = greedy(TINY, asked, 4)
    answers = [(await ask(pair, ids, 4))[0] for ids in asked]
    assert answers == expected
    decode = await pair.decode.idle()
    kv = next(pool for pool in decode["pools"] if pool["name"] == "kv")
    assert kv["evictable"] > kv["total"] // 2
    await whole(pair, "kv", "metadata")
    # The first is gone by now; the last is there.
    assert await ask(pair, asked[0], 4) == (expected[0], pages(1_500))
    tokens, moved = await ask(pair, asked[-1], 4)
    assert (tokens, moved <= 1) == (expected[-1], True)
    await whole(pair, "kv", "metadata")


async def test_the_two_change_places_and_back_with_their_processes_and_answer_as_before(pair: Pair) -> None:
    ids = prompt(150, 600)
    (expected,) = greedy(TINY, [ids], NEW_TOKENS)
    assert (await ask(pair, ids))[0] == expected
    processes = {pair.prefill.process.pid, pair.decode.process.pid}
    descriptors = open_descriptors(pair)
    for turn in range(2):
        was_prefill = pair.prefill
        await pair.swap()
        assert pair.decode is was_prefill
        # What either side kept went with its role.
        assert await ask(pair, ids) == (expected, pages(len(ids))), f"turn {turn}"
        tokens, moved = await ask(pair, ids)
        assert (tokens, moved) == (expected, pages(len(ids)) - len(ids) // PAGE_TOKENS), f"turn {turn}"
        await whole(pair, "kv", "metadata")
    assert {pair.prefill.process.pid, pair.decode.process.pid} == processes
    assert open_descriptors(pair) <= descriptors + 2, "changes leave nothing open"
    room = pair.submit(prompt(50, 601), max_new_tokens=3_000)
    await pair.decode.answers[room].began.wait()
    pair.decode.send(do="abort", room=room)
    assert (await pair.answer(room)).finish["why"][0] == "CANCELLED"
    await whole(pair, "kv", "metadata")


def open_descriptors(pair: Pair) -> int:
    """Files and sockets that both sides, and SGLang's processes of them, hold."""
    roots = [psutil.Process(side.process.pid) for side in (pair.prefill, pair.decode)]
    return sum(one.num_fds() for root in roots for one in (root, *root.children(recursive=True)))
