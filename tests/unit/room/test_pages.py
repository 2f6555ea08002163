"""Page runs: packing, expansion into byte ranges, and what a peer's lists are checked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.pages import MAX_PAGES, Ranges, expand, merge_ranges, pack_runs, rest_of_prompt, unpack_runs


@given(st.lists(st.integers(0, 40), max_size=60))
def test_packing_is_lossless(pages: list[int]) -> None:
    runs = pack_runs(pages)
    assert unpack_runs(runs.starts, runs.lengths, 41).tolist() == pages


def test_consecutive_pages_make_one_run() -> None:
    runs = pack_runs([4, 5, 6, 9, 8])
    assert (runs.starts.tolist(), runs.lengths.tolist()) == ([4, 9, 8], [3, 1, 1])


@pytest.mark.parametrize(
    ("starts", "lengths", "text"),
    [
        ([1, 2], [1], "run starts"),
        ([1], [0], "at least 1"),
        ([8], [3], "leaves the pool"),
        ([0], [MAX_PAGES + 1], "at least 1"),
    ],
)
def test_bad_runs_are_refused(starts: list[int], lengths: list[int], text: str) -> None:
    with pytest.raises(TandemError, match=text) as caught:
        unpack_runs(starts, lengths, 10)
    assert caught.value.reason is ErrorReason.PROTOCOL_VIOLATION


@given(st.data())
def test_expansion_equals_a_plain_loop(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 12))
    src = data.draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))
    dst = data.draw(st.lists(st.integers(0, 20), min_size=count, max_size=count, unique=True))
    items = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    src_bases = np.cumsum([0, *[item * 21 for item in items[:-1]]])
    dst_bases = src_bases + 1000
    ranges = expand(np.array(src, np.int64), np.array(dst, np.int64), src_bases, dst_bases, np.array(items, np.int64))
    expected = [
        (int(src_bases[b]) + s * item + i, int(dst_bases[b]) + d * item + i)
        for b, item in enumerate(items)
        for s, d in zip(src, dst, strict=True)
        for i in range(item)
    ]
    assert _bytes(ranges) == expected
    assert _bytes(merge_ranges(ranges)) == expected


def _bytes(ranges: Ranges) -> list[tuple[int, int]]:
    rows = zip(ranges.src.tolist(), ranges.dst.tolist(), ranges.lengths.tolist(), strict=True)
    return [(s + i, d + i) for s, d, n in rows for i in range(n)]


def test_runs_merge_only_where_both_sides_are_consecutive() -> None:
    pages = np.array([2, 3, 4], np.int64)
    zero, item = np.array([0]), np.array([10])
    assert expand(pages, np.array([7, 8, 9], np.int64), zero, zero, item).lengths.tolist() == [30]
    assert expand(pages, np.array([7, 9, 8], np.int64), zero, zero, item).lengths.tolist() == [10, 10, 10]


def test_unequal_counts_are_refused() -> None:
    with pytest.raises(TandemError, match="2 source pages for 1 granted"):
        expand(np.array([1, 2]), np.array([1]), np.array([0]), np.array([0]), np.array([4]))


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 128))
def test_prefix_and_rest_are_the_prompt(prompt: int, prefix_pages: int, page_size: int) -> None:
    prefix = min(prefix_pages, prompt // page_size) * page_size
    rest = rest_of_prompt(prompt, prefix, page_size)
    assert prefix // page_size + rest == rest_of_prompt(prompt, 0, page_size)
    assert prefix + rest * page_size >= prompt > prefix + (rest - 1) * page_size or (rest == 0 and prefix == prompt)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(-300, 300), st.integers(1, 64))
def test_a_prefix_is_whole_pages_of_the_prompt_or_refused(prompt: int, prefix: int, page_size: int) -> None:
    if 0 <= prefix <= prompt and prefix % page_size == 0:
        assert rest_of_prompt(prompt, prefix, page_size) >= 0
        return
    with pytest.raises(TandemError, match=f"prefix of {prefix} tokens") as caught:
        rest_of_prompt(prompt, prefix, page_size)
    assert caught.value.reason is ErrorReason.PROTOCOL_VIOLATION
