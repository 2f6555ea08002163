"""What a rank notes of a room: in order, bounded, and with a reason where it did not end well."""

from __future__ import annotations

from tandem.core.errors import ErrorReason
from tandem.core.room.timeline import MAX_CHUNK_SPANS, RoomSpan, Step, Timeline


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_steps_are_told_in_order_of_their_begin_from_the_rooms_opening() -> None:
    clock = Clock()
    timeline = Timeline(clock)
    timeline.begin(Step.GRANT_WAIT)
    clock.now += 1
    timeline.begin(Step.CHUNK, chunk=0, pages=3, provider="tcp")
    clock.now += 1
    timeline.end(Step.CHUNK, chunk=0, moved=12)
    clock.now += 1
    timeline.end(Step.GRANT_WAIT)
    assert timeline.spans() == (
        RoomSpan(Step.GRANT_WAIT, 0.0, 3.0),
        RoomSpan(Step.CHUNK, 1.0, 2.0, chunk=0, pages=3, bytes=12, provider="tcp"),
    )


def test_a_chunk_of_some_layers_says_of_which() -> None:
    timeline = Timeline(Clock())
    timeline.begin_buffers(2, pages=1, provider="cma", first_buffer=4, buffers=2)
    timeline.end(Step.CHUNK, chunk=2, moved=8)
    (span,) = timeline.spans()
    assert (span.chunk, span.first_buffer, span.buffers, span.bytes) == (2, 4, 2, 8)


def test_what_runs_when_a_room_fails_ends_with_its_reason() -> None:
    timeline = Timeline(Clock())
    timeline.begin(Step.GRANT_WAIT)
    timeline.end(Step.GRANT_WAIT)
    timeline.begin(Step.CHUNK, chunk=0)
    timeline.begin(Step.CHUNK, chunk=1)
    timeline.fail(ErrorReason.LINK_LOST)
    reasons = {(span.step, span.chunk): span.reason for span in timeline.spans()}
    assert reasons == {
        (Step.GRANT_WAIT, 0): None,
        (Step.CHUNK, 0): ErrorReason.LINK_LOST,
        (Step.CHUNK, 1): ErrorReason.LINK_LOST,
    }


def test_what_ends_twice_or_never_began_leaves_nothing() -> None:
    timeline = Timeline(Clock())
    timeline.end(Step.LANDING)
    timeline.begin(Step.LANDING)
    timeline.end(Step.LANDING)
    timeline.end(Step.LANDING)
    assert len(timeline.spans()) == 1


def test_chunks_are_bounded_and_nothing_else_is_lost_for_it() -> None:
    timeline = Timeline(Clock())
    for chunk in range(MAX_CHUNK_SPANS + 7):
        timeline.begin(Step.CHUNK, chunk=chunk)
        timeline.end(Step.CHUNK, chunk=chunk)
    timeline.begin(Step.LANDING)
    timeline.end(Step.LANDING)
    steps = [span.step for span in timeline.spans()]
    assert (steps.count(Step.CHUNK), timeline.dropped) == (MAX_CHUNK_SPANS, 7)
    assert steps.count(Step.LANDING) == 1
