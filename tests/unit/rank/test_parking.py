"""Offers that wait for their tickets: bounded in number and memory, and given back whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tandem.core.ids import GrantId, RoomId
from tandem.core.pages import PageRuns
from tandem.engine.rank import parking
from tandem.engine.rank.offers import Offer
from tandem.engine.rank.parking import ParkedOffers

LINK: Any = SimpleNamespace(down=None)
RUNS = 100


def _offer(room: int) -> Offer:
    runs = PageRuns(np.zeros(RUNS, np.uint32), np.ones(RUNS, np.uint32))
    return Offer(RoomId(room), GrantId(room), b"", {0: runs}, 0, 0)


def _never(link: object, offer: Offer) -> None:
    raise AssertionError("it was taken in time")


async def test_the_memory_of_parked_offers_is_bounded_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "MAX_PARKED_BYTES", 2 * 8 * RUNS)
    parked = ParkedOffers(10, 60_000, _never)
    assert [parked.put(LINK, _offer(room)) for room in (1, 2, 3)] == [True, True, False]
    assert parked.take(RoomId(1)) is not None
    assert parked.take(RoomId(3)) is None
    assert [parked.put(LINK, _offer(room)) for room in (3, 4)] == [True, False]
    parked.clear()
    assert [parked.put(LINK, _offer(room)) for room in (5, 6, 7)] == [True, True, False]
    parked.clear()


async def test_the_number_of_parked_offers_is_bounded_and_the_first_of_a_room_wins() -> None:
    parked = ParkedOffers(2, 60_000, _never)
    assert [parked.put(LINK, _offer(room)) for room in (1, 1, 2, 3)] == [True, False, True, False]
    parked.clear()
