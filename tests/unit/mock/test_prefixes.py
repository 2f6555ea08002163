"""The mock's decode keeps prefixes: pages are shared and evicted rightly, and the rest of a prompt gives its answer."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.core.errors import ErrorReason
from tandem.core.room.events import Why
from tandem.engine.mock.leases import Lease, Leases
from tandem.engine.port import FinishKind, Sampling
from tests.support.mock.pair import Pair, oracle_of, prompt_of

PAGE = 4
PAGE_BYTES = 4 * 64
"""Of the small mock: buffers, and bytes of a page in each."""
SHORT = Sampling(max_new_tokens=8, ignore_eos=True)


class Account:
    """Leases, and what the pages would hold: whoever wrote a page last says so here."""

    def __init__(self, pages: int) -> None:
        self.leases = Leases(pages, 16, PAGE, 16, keep_prefixes=True)
        self.open: list[tuple[Lease, list[int]]] = []
        self.content: dict[int, tuple[int, ...]] = {}

    def take(self, prompt: list[int], more: int) -> None:
        """A sequence begins, is written, and will have been this prompt with so many tokens more."""
        sequence = prompt + [9] * more
        lease = self.leases.take(len(sequence), prompt)
        if lease is None:
            return
        assert lease.pages.size == -(-len(sequence) // PAGE)
        held = len(lease.prefix)
        assert held * PAGE <= len(prompt)
        for number, page in enumerate(lease.pages.tolist()):
            so_far = tuple(sequence[: (number + 1) * PAGE])
            if number < held:
                assert self.content[page] == so_far, "a held page has the KV of this very beginning"
            else:
                assert all(page not in other.pages for other, _ in self.open), "its own pages are nobody else's"
                self.content[page] = so_far
        self.open.append((lease, sequence))

    def end(self, which: int, well: bool) -> None:
        """A sequence ends; its last token was never computed."""
        lease, sequence = self.open.pop(which % len(self.open))
        self.leases.give(lease, sequence[:-1] if well else ())

    def check(self) -> None:
        """Every page is free, kept, or of an open sequence."""
        used = {page for lease, _ in self.open for page in lease.pages.tolist()}
        leases = self.leases
        assert leases.pages.free + leases.prefixes.evictable + len(used) == leases.pages.total


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.lists(st.integers(0, 1), min_size=1, max_size=18), st.integers(1, 6)),
        st.tuples(st.sampled_from(["ends", "fails"]), st.integers(0, 15)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(STEPS)
def test_pages_are_free_kept_or_held_and_kept_ones_are_what_they_are_taken_for(steps: list[tuple]) -> None:
    account = Account(pages=24)
    for what, *rest in steps:
        if what == "take":
            account.take(*rest)
        elif account.open:
            account.end(rest[0], what == "ends")
        account.check()
    while account.open:
        account.end(0, well=True)
    account.check()


def test_the_end_of_a_prefix_goes_first_and_the_oldest_before() -> None:
    leases = Leases(8, 4, PAGE, 4, keep_prefixes=True)
    old, new = [1] * 12, [2] * 12
    for prompt in (old, new):
        lease = leases.take(13, prompt)
        assert lease is not None
        leases.give(lease, prompt)
    assert (leases.pages.free, leases.prefixes.evictable) == (2, 6)
    lease = leases.take(16, [3] * 16)
    assert lease is not None
    leases.give(lease)
    assert [len(leases.prefixes.hold(prompt)) for prompt in (old, new)] == [1, 3]


def test_what_is_held_is_not_evicted() -> None:
    leases = Leases(4, 4, PAGE, 4, keep_prefixes=True)
    lease = leases.take(8, [1] * 8)
    assert lease is not None
    leases.give(lease, [1] * 8)
    holder = leases.take(9, [1] * 8)
    assert holder is not None
    assert (len(holder.prefix), leases.prefixes.evictable) == (2, 0)
    assert leases.take(8, [2] * 8) is None
    assert leases.pages.free == 1


async def turn(pair: Pair, prompt: list[int], sampling: Sampling = SHORT) -> tuple[list[int], int]:
    """The answer, and how many pages moved for it."""
    before = (await pair.decode.status()).kv_bytes
    room = await pair.ask(prompt, sampling)
    assert (await room.decode.finish()).kind is FinishKind.LENGTH
    assert (await room.prefill.finish()).kind is FinishKind.HANDED_OVER
    _, decode = await pair.idle()
    moved, left = divmod(decode.kv_bytes - before, PAGE_BYTES * pair.settings.tp_size)
    assert left == 0
    return room.decode.tokens, moved


CHANGES = [{}, {"tp_size": 2}, {"chunk_tokens": 8}, {"layers_per_push": 1}, {"prefix_cache": True}]


@pytest.mark.parametrize("changes", [*CHANGES, {"prefix_cache": True, "chunk_tokens": 8, "layers_per_push": 1}])
async def test_turns_of_a_conversation_move_what_is_new(start_pair, changes: dict[str, int]) -> None:
    pair = await start_pair(keep_prefixes=True, **changes)
    oracle = oracle_of(pair.settings)
    talk, held = prompt_of(1, 21), 0
    for said in (3, 1, 6, 8):
        tokens, moved = await turn(pair, talk)
        assert tokens == oracle.predict(talk, 8, ignore_eos=True).tokens
        assert moved == -(-len(talk) // PAGE) - held
        talk = talk + tokens
        held = (len(talk) - 1) // PAGE
        talk += prompt_of(said, said)


async def test_a_prompt_that_is_held_whole_moves_its_first_token_only(start_pair) -> None:
    pair = await start_pair(keep_prefixes=True)
    prompt = prompt_of(7, 5 * PAGE)
    expected = oracle_of(pair.settings).predict(prompt, 8, ignore_eos=True).tokens
    assert await turn(pair, prompt) == (expected, 5)
    assert await turn(pair, prompt) == (expected, 0)


async def test_nothing_is_kept_unless_it_is_wanted(start_pair) -> None:
    pair = await start_pair()
    prompt = prompt_of(7, 20)
    assert await turn(pair, prompt) == await turn(pair, prompt)
    assert {pool.evictable for status in await pair.idle() for pool in status.pools} == {0}


async def test_a_changed_byte_of_a_kept_page_changes_the_answer(start_pair) -> None:
    pair = await start_pair(keep_prefixes=True)
    prompt = prompt_of(3, 22)
    right, _ = await turn(pair, prompt)
    memory = pair.decode._running().memories[0]
    memory.kv[0, pair.decode._running().book.leases.prefixes.pages(list(_kept(pair))[:1])] ^= 1
    wrong, moved = await turn(pair, prompt)
    assert moved == 1, "what is held is used as it is"
    assert wrong[1:] != right[1:]


def _kept(pair: Pair):
    return pair.decode._running().book.leases.prefixes._kept


async def test_a_room_that_is_aborted_leaves_the_prefix_and_nothing_else(start_pair, wire) -> None:
    pair = await start_pair(keep_prefixes=True, chunk_tokens=8)
    oracle = oracle_of(pair.settings)
    start = prompt_of(4, 40)
    await turn(pair, start)
    kept = len(_kept(pair))
    wire.hold_pushes = True
    longer = start + prompt_of(5, 60)
    room = await pair.ask(longer, SHORT)
    for _ in range(200):
        await asyncio.sleep(0)
    assert wire.held, "chunks are on their way"
    await pair.abort(room.room, Why(ErrorReason.CANCELLED, "the client left"))
    wire.release()
    assert (await room.decode.finish()).kind is FinishKind.FAILED
    await room.prefill.finish()
    await pair.idle()
    assert len(_kept(pair)) == kept
    tokens, moved = await turn(pair, longer)
    assert tokens == oracle.predict(longer, 8, ignore_eos=True).tokens
    assert moved == 25 - 10


async def test_many_at_once_on_few_pages(start_pair) -> None:
    pair = await start_pair(keep_prefixes=True, pages=40, max_waiting=64)
    oracle = oracle_of(pair.settings)
    start = prompt_of(1, 24)
    prompts = [start[: 4 * (seed % 7)] + prompt_of(seed, 3 + seed) for seed in range(32)]
    rooms = [await pair.ask(prompt, SHORT) for prompt in prompts]
    for room, prompt in zip(rooms, prompts, strict=True):
        await room.prefill.finish()
        assert (await room.decode.finish()).kind is FinishKind.LENGTH
        assert room.decode.tokens == oracle.predict(prompt, 8, ignore_eos=True).tokens
    _, decode = await pair.idle()
    assert decode.kv_bytes < sum(-(-len(prompt) // PAGE) for prompt in prompts) * PAGE_BYTES
