"""The book of rooms: pages, and what can be ended."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Incarnation, RequestId, Role, RoomId, WorkerId, WorkerLife
from tandem.gateway.routing.attempt import RoomPhase
from tandem.gateway.routing.rooms import RoomBook, RoomFacts

LIFE = WorkerLife(WorkerId("w"), Incarnation(1))


class Running:
    """A room that notes how it is ended."""

    def __init__(self, phase: RoomPhase = RoomPhase.SUBMITTED) -> None:
        self.phase = phase
        self.why: TandemError | None = None
        self.end = self

    def give_up(self, error: TandemError) -> bool:
        first, self.why = self.why is None, error
        return first


def facts(room: int) -> RoomFacts:
    """Of a room."""
    return RoomFacts(RoomId(room), RequestId(f"r{room}"), 1, {Role.PREFILL: LIFE, Role.DECODE: LIFE}, 100.0)


async def test_pages_go_on_where_the_last_one_ended_though_rooms_come_and_go() -> None:
    book = RoomBook()
    with ExitStack() as stack:
        for room in (30, 10, 20):
            stack.enter_context(book.running(facts(room), Running()))
        first = book.page(0, 2)
        assert [entry.facts.room for entry in first.entries] == [30, 10]
        assert first.total == 3
        with book.running(facts(40), Running()):
            second = book.page(first.next_after, 2)
        assert [entry.facts.room for entry in second.entries] == [20, 40]
        assert (second.next_after, second.total) == (0, 4)
        assert book.page(first.next_after, 0).next_after == 0
    assert book.page(0, 0).entries == ()
    with pytest.raises(TandemError, match=r"1\.\.1000"):
        book.page(0, 1001)


async def test_a_room_is_ended_once() -> None:
    book, running = RoomBook(), Running(RoomPhase.DECODING)
    with book.running(facts(7), running):
        assert book.phases() == {RoomPhase.DECODING: 1}
        assert book.abort(RoomId(7)).facts.request_id == "r7"
        assert running.why is not None
        assert running.why.reason is ErrorReason.CANCELLED
        for room in (7, 8):
            with pytest.raises(TandemError) as gone:
                book.abort(RoomId(room))
            assert gone.value.reason is ErrorReason.UNKNOWN_ROOM
    with pytest.raises(TandemError):
        book.find(RoomId(7))
