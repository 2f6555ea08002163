"""The index of prefix caches, and the logs that feed it: against naive models, and on a seeded trace."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.core.ids import Incarnation, WorkerId, WorkerLife
from tandem.core.kv_index import KvChange, KvIndex, PageHash, page_hashes
from tandem.core.kv_log import KvFollower, KvLog

LIVES = [WorkerLife(WorkerId(f"w{number}"), Incarnation(1)) for number in range(4)]
PAGES = st.integers(0, 7).map(PageHash)
ROOM = 1000


def hashes(*numbers: int) -> tuple[PageHash, ...]:
    return tuple(map(PageHash, numbers))


def first(*stored: int) -> KvChange:
    """What a follower gets first."""
    return KvChange(0, stored=hashes(*stored), cleared=True)


def leading(held: Iterable[PageHash], prompt: Sequence[PageHash]) -> int:
    """How many of the first pages of a prompt are held, counted one by one."""
    known = set(held)
    return next((depth for depth, page in enumerate(prompt) if page not in known), len(prompt))


def depths(index: KvIndex, prompt: Sequence[PageHash]) -> dict[WorkerLife, int]:
    """What the index says of each worker that holds something, in both of its ways."""
    match = index.match([(page,) for page in prompt])
    levels = list(match.levels(np.arange(len(match.lives))))
    found = {life: depth for depth, places in levels for place in places if (life := match.lives[place])}
    assert sum(len(places) for _, places in levels) == len(found)
    assert [depth for depth, _ in levels] == sorted({*found.values()}, reverse=True)
    assert match.most == max(found.values(), default=0)
    assert {life: depth for life in LIVES if (depth := match.pages_of(life))} == {
        life: depth for life, depth in found.items() if life in LIVES
    }
    return found


# ---------------------------------------------------------------- hashes


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(1, 7), st.integers(0, 6))
def test_full_pages_are_hashed_and_equal_beginnings_alike(ids: list[int], page_size: int, shared: int) -> None:
    pages = page_hashes(ids, page_size)
    assert len(pages) == len(ids) // page_size
    assert len(set(pages)) == len(pages)
    other = [*ids[: shared * page_size], *(token ^ 1 for token in ids[shared * page_size :])]
    both = zip(pages, page_hashes(other, page_size), strict=True)
    assert [ours == theirs for ours, theirs in both] == [depth < shared for depth in range(len(pages))]


def test_hashes_are_those_of_every_release() -> None:
    assert page_hashes(range(8), 4) == [13469532162986437375, 90435953025800507]
    assert page_hashes(range(8), 4, limit=1) == page_hashes(range(4), 4)


# ---------------------------------------------------------------- the index

step = st.tuples(
    st.sampled_from(LIVES),
    st.sampled_from(["store", "remove", "clear", "forget"]),
    st.lists(PAGES, max_size=4),
)


@given(st.lists(step, max_size=40), st.lists(PAGES, max_size=6))
def test_it_says_what_a_naive_model_says(steps: list[tuple[WorkerLife, str, list[PageHash]]], prompt: list[PageHash]):
    index, model, due = KvIndex(ROOM), dict[WorkerLife, set[PageHash]](), dict[WorkerLife, int]()
    for life, what, pages in steps:
        match what:
            case "forget":
                index.forget(life)
                model.pop(life, None)
            case "store" if life in model:
                assert index.apply(life, KvChange(due[life], stored=tuple(pages)))
                model[life] |= set(pages)
            case "remove" if life in model:
                assert index.apply(life, KvChange(due[life], removed=tuple(pages)))
                model[life] -= set(pages)
            case _:
                due[life] = 41
                assert index.apply(life, KvChange(41, stored=tuple(pages), cleared=True))
                model[life] = set(pages)
        due[life] = due.get(life, 0) + 1
        assert index.entries == sum(map(len, model.values()))
    wanted = {life: depth for life, pages in model.items() if (depth := leading(pages, prompt))}
    assert depths(index, prompt) == wanted


def test_after_a_gap_nothing_is_known_until_a_snapshot_comes() -> None:
    index, life = KvIndex(ROOM), LIVES[0]
    assert index.apply(life, first(1, 2))
    assert not index.apply(life, KvChange(2, stored=hashes(3)))
    assert depths(index, hashes(1, 2, 3)) == {}
    assert not index.apply(life, KvChange(3, stored=hashes(3))), "it goes on being unknown"
    assert (index.gaps, index.entries) == (2, 0)
    assert index.apply(life, KvChange(9, stored=hashes(1), cleared=True))
    assert index.apply(life, KvChange(10, stored=hashes(2)))
    assert depths(index, hashes(1, 2, 3)) == {life: 2}


def test_a_change_that_nothing_came_before_is_a_gap() -> None:
    index = KvIndex(ROOM)
    assert not index.apply(LIVES[0], KvChange(0, stored=hashes(1)))
    assert depths(index, hashes(1)) == {}


def test_memory_is_bounded_and_what_goes_makes_place() -> None:
    index, (one, two, *_) = KvIndex(3), LIVES
    index.apply(one, first(1, 2))
    index.apply(two, first(1, 2, 3))
    assert (index.entries, index.not_kept) == (3, 2)
    assert depths(index, hashes(1, 2, 3)) == {one: 2, two: 1}
    index.forget(one)
    assert index.apply(two, KvChange(1, stored=hashes(2, 3)))
    assert depths(index, hashes(1, 2, 3)) == {two: 3}


def test_a_place_of_a_worker_that_is_gone_is_the_next_ones() -> None:
    index = KvIndex(ROOM)
    for number in range(100):
        life = WorkerLife(WorkerId("w"), Incarnation(number + 1))
        index.apply(life, first(1))
        assert depths(index, hashes(1)) == {life: 1}
        index.forget(life)
    assert len(index._lives) == 1


@settings(deadline=None)
@given(st.sets(st.integers(0, 60)), st.permutations(range(61)))
def test_few_and_many_that_hold_as_much_are_told_by_their_places_in_order(holding: set[int], places: list[int]) -> None:
    """places: of each life, in some order of the asker's; of ten lives nothing is to be told."""
    index, lives = KvIndex(ROOM), [WorkerLife(WorkerId(f"w{number}"), Incarnation(1)) for number in range(61)]
    for number, life in enumerate(lives):
        index.apply(life, first(*(1, 2) if number in holding else (1,)))
    asked = np.array([place - 10 if place >= 10 else -1 for place in places])
    found = {depth: list(some) for depth, some in index.match([hashes(1), hashes(2)]).levels(asked)}
    for depth, numbers in ((2, holding), (1, set(range(61)) - holding)):
        assert found.get(depth, []) == sorted(asked[number] for number in numbers if asked[number] >= 0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_however_pages_are_asked_for_together_the_answer_is_the_same(held: list[int], sizes: list[int]) -> None:
    """Of caches that evict from the end, as all do."""
    index, prompt = KvIndex(ROOM), hashes(*range(sum(sizes)))
    for life, count in zip(LIVES, held, strict=False):
        index.apply(life, first(*range(count)))
    ends = list(accumulate(sizes))
    runs = [prompt[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    wanted = {life: depth for life, count in zip(LIVES, held, strict=False) if (depth := min(count, len(prompt)))}
    match = index.match(runs)
    assert {life: match.pages_of(life) for life in wanted} == wanted
    assert match.most == max(wanted.values(), default=0)


# ---------------------------------------------------------------- logs

news = st.one_of(
    st.tuples(st.just("store"), st.lists(PAGES, max_size=4)),
    st.tuples(st.just("remove"), st.lists(PAGES, max_size=4)),
    st.tuples(st.sampled_from(["clear", "take"]), st.just([])),
)


def drain(follower: KvFollower, index: KvIndex, life: WorkerLife, limit: int = 3) -> None:
    """Everything that a follower has to say."""
    while (change := follower.take(limit)) is not None:
        assert len(change.stored) + len(change.removed) <= limit
        assert not set(change.stored) & set(change.removed)
        assert index.apply(life, change), "a stream of changes has no gaps"


@given(st.lists(news, max_size=60), st.integers(1, 8))
def test_followers_fast_and_slow_know_what_is_held(steps: list[tuple[str, list[PageHash]]], max_pages: int) -> None:
    log, index, late = KvLog(max_pages), KvIndex(ROOM), KvIndex(ROOM)
    told: list[str] = []
    follower = log.follow(lambda: told.append("news"))
    copy = KvLog(max_pages)
    for what, pages in steps:
        told.clear()
        before = set(log.pages)
        match what:
            case "store":
                log.store(pages)
            case "remove":
                log.remove(pages)
            case "clear":
                log.clear()
            case _ if (change := follower.take(3)) is not None:
                assert index.apply(LIVES[0], change)
                copy.apply(change)
        assert told or set(log.pages) == before, "who follows hears of each change"
        assert len(log.pages) <= max_pages
        assert len(follower._pending) <= 2 * max_pages
    while (change := follower.take(3)) is not None:
        assert index.apply(LIVES[0], change)
        copy.apply(change)
    drain(log.follow(lambda: None), late, LIVES[0])
    assert index._pages == late._pages == {LIVES[0]: set(log.pages)}
    assert set(copy.pages) == set(log.pages)


def test_who_has_left_is_told_nothing() -> None:
    log, told = KvLog(10), list[int]()
    follower = log.follow(lambda: told.append(1))
    follower.close()
    follower.close()
    told.clear()
    log.store(hashes(1))
    assert not told


def test_a_page_that_came_and_went_is_told_of_once() -> None:
    log = KvLog(10)
    follower = log.follow(lambda: None)
    follower.take(10)
    for _ in range(5):
        log.store(hashes(1, 2))
        log.remove(hashes(1))
    assert follower.take(10) == KvChange(1, removed=hashes(1), stored=hashes(2))
    assert follower.take(10) is None


# ---------------------------------------------------------------- a trace


@pytest.mark.parametrize("seed", range(3))
def test_a_trace_of_conversations_on_caches_that_evict(seed: int) -> None:
    """Prompts of 1 to 40 pages that share beginnings, on four caches of 56 pages; the followers read now and then."""
    dice, index = random.Random(seed), KvIndex(ROOM)
    logs = {life: KvLog(128) for life in LIVES}
    followers = {life: log.follow(lambda: None) for life, log in logs.items()}
    caches = {life: OrderedDict[PageHash, None]() for life in LIVES}
    found = 0
    for _ in range(600):
        conversation, turns = dice.randrange(12), dice.randrange(1, 11)
        ids = [conversation * 1000 + token for token in range(turns * 16)]
        prompt, life = page_hashes(ids, 4), dice.choice(LIVES)
        cache, log = caches[life], logs[life]
        for page in prompt:
            cache[page] = None
            cache.move_to_end(page)
        log.store(prompt)
        gone = [cache.popitem(last=False)[0] for _ in range(len(cache) - 56)] if len(cache) > 56 else []
        log.remove(gone)
        if dice.random() < 0.5:
            drain(followers[life], index, life, limit=1000)
        if all(not follower._pending for follower in followers.values()):
            wanted = {one: depth for one, cache in caches.items() if (depth := leading(cache, prompt))}
            assert depths(index, prompt) == wanted
            found += len(wanted)
    assert found > 20, "the trace has moments in which all has been told"
