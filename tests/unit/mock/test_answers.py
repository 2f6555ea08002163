"""The mock answers as the oracle says, and every byte that decode was granted counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tandem.engine.port import FinishKind, Sampling
from tests.support.mock.oracle import GAMMA, Oracle, scramble
from tests.support.mock.pair import Pair, oracle_of, prompt_of
from tests.support.mock.ranks import Landing, Wire

PROMPT = prompt_of(7, 23)  # five full pages of four and a part of one
GREEDY = Sampling(max_new_tokens=12, ignore_eos=True)


async def answer(pair: Pair, prompt: list[int] = PROMPT, sampling: Sampling = GREEDY) -> tuple[list[int], str]:
    """Tokens and text of one room that ends well."""
    room = await pair.ask(prompt, sampling)
    assert (await room.prefill.finish()).kind is FinishKind.HANDED_OVER
    finish = await room.decode.finish()
    assert finish.kind in (FinishKind.STOP, FinishKind.LENGTH), finish
    assert finish.completion_tokens == len(room.decode.tokens)
    assert finish.prompt_tokens == len(prompt)
    assert room.prefill.tokens == []
    return room.decode.tokens, room.decode.text


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 8, 23, 61, 150])
@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("chunk_tokens", [64, 4, 7, 1])
async def test_oracle_predicts_every_answer(start_pair, tokens: int, tp_size: int, chunk_tokens: int) -> None:
    pair = await start_pair(tp_size=tp_size, chunk_tokens=chunk_tokens)
    prompt = prompt_of(tokens, tokens)
    predicted = oracle_of(pair.settings).predict(prompt, 12, ignore_eos=True)
    assert await answer(pair, prompt) == (predicted.tokens, predicted.text)
    await pair.idle()


@pytest.mark.parametrize("layers_per_push", [1, 2, 3, 5])
@pytest.mark.parametrize("chunk_tokens", [64, 4, 7])
async def test_oracle_predicts_answers_whose_layers_are_pushed_one_by_one(
    start_pair, chunk_tokens: int, layers_per_push: int
) -> None:
    pair = await start_pair(tp_size=2, layers=5, chunk_tokens=chunk_tokens, layers_per_push=layers_per_push)
    for tokens in (1, 4, 23, 61):
        prompt = prompt_of(tokens, tokens)
        predicted = oracle_of(pair.settings).predict(prompt, 12, ignore_eos=True)
        assert await answer(pair, prompt) == (predicted.tokens, predicted.text)
    await pair.idle()


@pytest.mark.parametrize("says_end", [True, False])
async def test_the_token_that_ends_the_text_may_be_left_out(start_pair, says_end: bool) -> None:
    pair = await start_pair(vocab=3, says_end=says_end)
    told = [token for number in range(4) for token in (await answer(pair, prompt_of(number, 9)))[0]]
    assert set(told) == ({0, 1, 2} if says_end else {1, 2})


async def test_prefill_says_the_first_token_before_the_kv_has_landed(start_pair, wire: Wire) -> None:
    pair = await start_pair()
    predicted = oracle_of(pair.settings).predict(PROMPT, 12, ignore_eos=True)
    wire.hold_pushes = True
    room = await pair.ask(PROMPT, GREEDY, early_first_token=True)
    await asyncio.wait_for(room.prefill.began.wait(), 20)
    assert room.prefill.tokens == predicted.tokens[:1]
    assert predicted.text.startswith(room.prefill.text)
    assert not room.prefill.ended.is_set()
    assert room.decode.deltas == []
    wire.release()
    assert (await room.decode.finish()).completion_tokens == 12
    assert (room.decode.tokens, room.decode.text) == (predicted.tokens, predicted.text)
    assert room.prefill.tokens == predicted.tokens[:1], "once"


async def test_other_shapes_of_kv(start_pair) -> None:
    pair = await start_pair(layers=3, head_bytes=40, page_size=1, tp_size=3)
    predicted = oracle_of(pair.settings).predict(PROMPT, 12, ignore_eos=True)
    assert (await answer(pair))[0] == predicted.tokens


async def test_prompts_that_differ_in_one_token_get_other_answers(start_pair) -> None:
    pair = await start_pair()
    answers = [(await answer(pair))[1]]
    for place in (0, 11, 22):
        changed = list(PROMPT)
        changed[place] ^= 1
        answers.append((await answer(pair, changed))[1])
    answers.append((await answer(pair, PROMPT[::-1]))[1])
    assert len(set(answers)) == len(answers)


async def test_reused_pages_do_not_leak_into_the_next_answer(start_pair) -> None:
    pair = await start_pair(pages=12)
    oracle = oracle_of(pair.settings)
    for seed in range(6):
        prompt = prompt_of(seed, 17 + seed)
        predicted = oracle.predict(prompt, 12, ignore_eos=True)
        assert await answer(pair, prompt) == (predicted.tokens, predicted.text)
    await pair.idle()


def swap_pages(landing: Landing) -> None:
    """The first two pages change places."""
    first, second = landing.pages[:2]
    for plane in landing.kv:
        plane[[first, second]] = plane[[second, first]]


def zero_page(landing: Landing) -> None:
    """One page was never written."""
    for plane in landing.kv:
        plane[landing.pages[2]] = 0


def flip(place: int, buffer: int, byte: int, bit: int) -> Callable[[Landing], None]:
    """One bit of one page differs."""

    def spoil(landing: Landing) -> None:
        landing.kv[buffer][landing.pages[place], byte] ^= 1 << bit

    return spoil


def flip_two_top_bits(landing: Landing) -> None:
    """Two changes that a plain sum of odd multiples could not tell from none."""
    landing.kv[0][landing.pages[0], 7] ^= 0x80
    landing.kv[0][landing.pages[0], 15] ^= 0x80


def swap_layers_of_a_page(landing: Landing) -> None:
    """A page's K of two layers change places."""
    page = landing.pages[1]
    landing.kv[0][page], landing.kv[1][page] = landing.kv[1][page].copy(), landing.kv[0][page].copy()


SPOILERS = {
    "swapped pages": swap_pages,
    "zero page": zero_page,
    "flipped bit": flip(3, 1, 5, 0),
    "flipped bit of the first byte": flip(0, 0, 0, 7),
    "flipped bit of the last byte": flip(4, 3, 63, 7),
    "flipped bit behind the prompt's end": flip(5, 3, 63, 0),
    "two flipped top bits": flip_two_top_bits,
    "swapped layers": swap_layers_of_a_page,
}


@pytest.mark.parametrize("spoiled_rank", [0, 1])
@pytest.mark.parametrize("name", SPOILERS)
async def test_spoiled_kv_changes_the_answer(start_pair, wire: Wire, name: str, spoiled_rank: int) -> None:
    pair = await start_pair(tp_size=2)
    oracle: Oracle = oracle_of(pair.settings)
    right = oracle.predict(PROMPT, 12, ignore_eos=True)
    landed: dict[int, list[bytes]] = {}

    def spoil(landing: Landing) -> None:
        if landing.rank.tp == spoiled_rank:
            SPOILERS[name](landing)
        landed[landing.rank.tp] = [landing.page(place) for place in range(len(landing.pages))]

    wire.spoil = spoil
    tokens, text = await answer(pair)
    assert text != right.text
    # The first token comes with the metadata; every later one differs as the oracle says of just these bytes.
    wrong = chained(oracle, oracle.digest([landed[0], landed[1]]), right.tokens[0], 12)
    assert tokens == wrong


async def test_stale_page_of_another_room_changes_the_answer(start_pair, wire: Wire) -> None:
    pair = await start_pair()
    old: list[bytes] = []

    def remember(landing: Landing) -> None:
        old.extend(plane[landing.pages[1]].tobytes() for plane in landing.kv)

    def put_old_page(landing: Landing) -> None:
        for plane, before in zip(landing.kv, old, strict=True):
            plane[landing.pages[1]] = bytearray(before)

    wire.spoil = remember
    other = [token + 1 for token in PROMPT]
    await answer(pair, other)
    wire.spoil = None
    right = await answer(pair)
    wire.spoil = put_old_page
    stale = await answer(pair)
    predicted = oracle_of(pair.settings).predict(PROMPT, 12, ignore_eos=True)
    assert right == (predicted.tokens, predicted.text)
    assert stale[1] != right[1]


def chained(oracle: Oracle, digest: int, first: int, count: int) -> list[int]:
    """What decode makes of `digest` if prefill's first token was `first`."""
    chain = scramble(digest + first + 1)
    return [first] + [scramble(chain + (place + 1) * GAMMA) % oracle.vocab for place in range(1, count)]


async def test_metadata_of_another_room_fails(start_pair, wire: Wire) -> None:
    pair = await start_pair()

    def other_room(landing: Landing) -> None:
        landing.row[0] ^= 0x40

    wire.spoil = other_room
    room = await pair.ask(PROMPT, GREEDY)
    finish = await room.decode.finish()
    assert finish.kind is FinishKind.FAILED
    assert finish.why is not None
    assert finish.why.reason.value == "TRANSFER_FAILED"
    assert room.decode.tokens == []
    await room.prefill.finish()
    await pair.idle()


async def test_wrong_first_token_changes_all_that_follows(start_pair, wire: Wire) -> None:
    pair = await start_pair()
    right, _ = await answer(pair)

    def other_token(landing: Landing) -> None:
        landing.row[8] ^= 0x01

    wire.spoil = other_token
    wrong, _ = await answer(pair)
    assert all(one != other for one, other in zip(right, wrong, strict=True))


async def test_page_bytes_are_those_of_the_oracle(start_pair, wire: Wire) -> None:
    pair = await start_pair(tp_size=2)
    oracle = oracle_of(pair.settings)
    seen = []

    def compare(landing: Landing) -> None:
        seen.append(landing.rank.tp)
        for place in range(len(landing.pages)):
            assert landing.page(place) == oracle.page_bytes(PROMPT, landing.rank.tp, place)

    wire.spoil = compare
    await answer(pair)
    assert seen == [0, 1]
