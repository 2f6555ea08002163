"""The pages of a prompt, hashed as far as somebody asks and no chunk of it twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.core import prompt_pages
from tandem.core.kv_index import MAX_PAGES_MATCHED, PageHash, page_hashes
from tandem.core.prompt_pages import CHUNK_TOKENS, Hashed, PageMemo, PromptPages


def each(pages: PromptPages) -> Iterator[PageHash]:
    """One by one."""
    return chain.from_iterable(pages.runs())


class NotingMemo(PageMemo):
    """Counts what it knew, and what it was told."""

    def __init__(self, max_chunks: int = 100) -> None:
        super().__init__(max_chunks)
        self.known = self.told = 0

    def get(self, key: tuple[bytes, bytes]) -> Hashed | None:
        found = super().get(key)
        self.known += found is not None
        return found

    def put(self, key: tuple[bytes, bytes], chunk: Hashed) -> None:
        self.told += 1
        super().put(key, chunk)


@settings(deadline=None)
@given(
    st.sampled_from([1, 3, 16, 100, 256, 300]),
    st.lists(st.tuples(st.integers(0, 800), st.integers(0, 400)), min_size=1, max_size=4),
    st.lists(st.integers(0, 130), max_size=2),
    st.integers(0, 3),
)
def test_they_are_those_that_workers_name(
    page_size: int, prompts: list[tuple[int, int]], asked: list[int], max_chunks: int
) -> None:
    """Of prompts that begin alike, each gone through in part some times before, whatever is forgotten in between."""
    memo = NotingMemo(max_chunks)
    for shared, own in prompts:
        ids = (*range(shared), *range(10**6, 10**6 + own))
        pages, wanted = PromptPages(ids, page_size, memo), page_hashes(ids, page_size)
        for count in asked:
            assert list(islice(each(pages), count)) == wanted[:count]
        assert list(each(pages)) == list(each(pages)) == wanted


def test_the_same_tokens_after_others_are_other_pages() -> None:
    memo, same = PageMemo(10), tuple(range(CHUNK_TOKENS))
    for before in (7, 8):
        ids = (before,) * CHUNK_TOKENS + same
        assert list(each(PromptPages(ids, 16, memo))) == page_hashes(ids, 16)


def test_two_that_go_through_them_at_the_same_time_see_the_same() -> None:
    pages, dice = PromptPages(range(2_000), 16, PageMemo(10)), random.Random(3)
    both = [each(pages), each(pages)]
    seen: list[list[int]] = [[], []]
    for which in (dice.randrange(2) for _ in range(1_000)):
        seen[which] += islice(both[which], 1)
    assert seen == [page_hashes(range(2_000), 16)] * 2


def test_no_more_is_hashed_than_is_asked_for_and_nothing_that_was_hashed_before(monkeypatch) -> None:
    hashed, real = [], prompt_pages.sha256
    monkeypatch.setattr(prompt_pages, "sha256", lambda data: hashed.append(data) or real(data))
    ids, memo = tuple(range(3 * CHUNK_TOKENS)), NotingMemo()
    pages = PromptPages(ids, 16, memo)
    assert not hashed
    next(each(pages))
    assert len(hashed) == 1
    list(islice(each(pages), 20))
    assert len(hashed) == 20
    list(each(pages))
    assert len(hashed) == len(ids) // 16
    assert memo.told == 3
    assert list(map(len, PromptPages((*ids, *range(16)), 16, memo).runs())) == [16, 16, 16, 1]
    assert len(hashed) == len(ids) // 16 + 1
    assert memo.known == 3


def test_what_is_remembered_is_bounded_and_the_least_used_is_forgotten() -> None:
    memo, dice = NotingMemo(2), random.Random(1)
    one, two, three = (tuple(dice.randrange(1000) for _ in range(CHUNK_TOKENS)) for _ in range(3))
    for ids in (one, two, one, three, one):
        list(PromptPages(ids, 16, memo).runs())
    assert (memo.known, memo.told) == (2, 3)
    list(PromptPages(two, 16, memo).runs())
    assert (memo.known, memo.told) == (2, 4)


@pytest.mark.parametrize("page_size", [1, 16])
def test_only_so_many_pages_are_looked_up(page_size: int) -> None:
    ids = range((MAX_PAGES_MATCHED + 5) * page_size)
    assert len(list(each(PromptPages(ids, page_size, PageMemo(1))))) == MAX_PAGES_MATCHED
