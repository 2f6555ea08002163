"""Pages are counted for each Session and data parallel rank, and given back once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tandem.core.ids import RankId, RoomId
from tandem.engine.port import RankInfo
from tandem.engine.worker.page_shares import PageShares
from tests.unit.worker.test_submit import FACTS

A, B = RoomId(1), RoomId(2)
PAGE = FACTS.layout.page_size
RANKS = tuple(RankInfo(RankId(dp=rank), "") for rank in range(2))


def shares() -> PageShares:
    """Of a worker with two ranks."""
    return PageShares(replace(FACTS, ranks=RANKS))


def test_rooms_are_counted_in_whole_pages_by_rank() -> None:
    all_of_them = shares()
    ours, theirs = all_of_them.join(lambda: None), all_of_them.join(lambda: None)
    theirs.keep(A, 0, PAGE + 1)
    theirs.keep(B, 1, PAGE)
    ours.keep(RoomId(3), 1, 7 * PAGE)
    assert (ours.others, theirs.others) == ([2, 1], [0, 7])


@pytest.mark.parametrize("twice", [False, True])
def test_an_end_gives_back_what_was_kept_once(twice: bool) -> None:
    all_of_them = shares()
    ours, theirs = all_of_them.join(lambda: None), all_of_them.join(lambda: None)
    for _ in range(1 + twice):
        theirs.keep(A, 0, 5 * PAGE)
    theirs.keep(B, 0, PAGE)
    for _ in range(1 + twice):
        theirs.free(A)
    assert ours.others == [1, 0]


def test_a_rank_that_is_not_there_keeps_nothing() -> None:
    all_of_them = shares()
    ours, theirs = all_of_them.join(lambda: None), all_of_them.join(lambda: None)
    theirs.keep(A, 2, PAGE)
    theirs.free(A)
    assert ours.others == [0, 0]


def test_only_others_hear_of_a_change() -> None:
    heard: list[str] = []
    all_of_them = shares()
    ours = all_of_them.join(lambda: heard.append("ours"))
    theirs = all_of_them.join(lambda: heard.append("theirs"))
    theirs.keep(A, 0, PAGE)
    assert heard == ["ours"]
    theirs.leave()
    ours.keep(B, 0, PAGE)
    assert heard == ["ours", "ours"]
    assert ours.others == [0, 0]
