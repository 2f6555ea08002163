"""How many rooms each rank is asked for, and how their answers become one."""

from __future__ import annotations

import pytest

from tandem.core.ids import Incarnation, RankId, RoomId, WorkerId, WorkerLife
from tandem.engine.port import OpenRooms, RankRoom
from tandem.engine.rank import open_rooms

PEER = WorkerLife(WorkerId("p"), Incarnation(2))


def room(number: int, tp: int, age_ms: int) -> RankRoom:
    """One of a rank."""
    return RankRoom(RoomId(number), RankId(tp=tp), "ready", PEER, 0, 0, age_ms, 10)


@pytest.mark.parametrize(
    ("asked", "ranks", "limit"), [(0, 1, 1000), (5, 1, 5), (9999, 2, 1000), (0, 8, 512), (1, 64, 1), (0, 0, 1000)]
)
def test_all_ranks_rooms_fit_one_message(asked: int, ranks: int, limit: int) -> None:
    assert open_rooms.limit_of(asked, ranks) == limit


def test_ranks_are_merged_the_oldest_first_and_counted() -> None:
    ranks = [OpenRooms((room(1, 0, 30), room(2, 0, 10)), 7), OpenRooms((room(1, 1, 31),), 1)]
    merged = open_rooms.merge(ranks)
    assert [one.age_ms for one in merged.rooms] == [31, 30, 10]
    assert merged.total == 8


def test_a_room_survives_its_message() -> None:
    assert open_rooms.from_proto(open_rooms.to_proto(room(9, 3, 4))) == room(9, 3, 4)
