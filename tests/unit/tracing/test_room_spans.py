"""What ranks note becomes spans below the leg that they belong to."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import INVALID_SPAN, StatusCode

from tandem.core.errors import ErrorReason
from tandem.core.ids import RankId, RoomId
from tandem.core.room.timeline import RoomSpan, Step
from tandem.engine.port import RoomTrace
from tandem.engine.rank import wire
from tandem.engine.worker.room_spans import record
from tandem.rpc.tracing import names
from tandem.rpc.tracing.provider import Tracing, traceparent_of
from tandem.rpc.tracing.settings import TraceSettings

OPENED = 1_700_000_000_000_000_000
CHUNK = RoomSpan(Step.CHUNK, 0.5, 0.75, chunk=3, pages=2, bytes=1_000_000_000, provider="tcp")
LAYERS = RoomSpan(Step.CHUNK, 0.5, 0.75, chunk=4, pages=2, bytes=10, provider="tcp", first_buffer=6, buffers=2)
DELTA = RoomSpan(Step.RECEIVE, 0.25, 1.0, pages=1, bytes=4, provider="cma", prefix_tokens=48)
LOST = RoomSpan(Step.RECEIVE, 0.25, 1.0, pages=9, bytes=4, provider="cma", reason=ErrorReason.LINK_LOST)
RANK = RankId(dp=0, pp=1, tp=2)


class Leg:
    """A worker's leg, and what is recorded below it."""

    def __init__(self, **settings: object) -> None:
        self.tracing = Tracing("decode", "d0", TraceSettings(**settings))  # type: ignore[arg-type]
        self.span = self.tracing.enter("decode", INVALID_SPAN, {})

    def record(self, *spans: RoomSpan, dropped: int = 0) -> int:
        """As a rank sends it."""
        trace = RoomTrace(RoomId(7), RANK, traceparent_of(self.span), OPENED, spans, dropped)
        return record(self.tracing, wire.trace_of(wire.trace_message(trace), trace.room, trace.rank))

    def below(self) -> list[ReadableSpan]:
        """What was recorded."""
        kept = self.tracing.ring.trace(self.span.get_span_context().trace_id)
        return kept.spans[1:] if kept is not None else []


def test_a_chunk_says_all_that_is_known_of_it() -> None:
    leg = Leg()
    leg.record(CHUNK, LAYERS)
    whole, layers = leg.below()
    assert (whole.name, whole.start_time, whole.end_time) == ("chunk", OPENED + 500_000_000, OPENED + 750_000_000)
    assert whole.parent is not None
    assert whole.parent.span_id == leg.span.get_span_context().span_id
    assert dict(whole.attributes or {}) == {
        names.RANK: "dp0.pp1.tp2",
        names.CHUNK: 3,
        names.PAGES: 2,
        names.BYTES: 1_000_000_000,
        names.GB_PER_S: 4.0,
        names.PROVIDER: "tcp",
    }
    assert (layers.attributes or {})[names.FIRST_BUFFER] == 6
    assert (layers.attributes or {})[names.BUFFERS] == 2


def test_a_room_tells_how_much_decode_held() -> None:
    leg = Leg()
    leg.record(DELTA)
    (span,) = leg.below()
    assert (span.attributes or {})[names.PREFIX_TOKENS] == 48


def test_a_step_that_failed_tells_why() -> None:
    leg = Leg()
    assert leg.record(LOST, dropped=5) == 0, "nothing is in place"
    (span,) = leg.below()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})[names.ERROR_TYPE] == "LINK_LOST"
    assert (span.attributes or {})[names.CHUNKS_DROPPED] == 5


def test_chunks_that_landed_are_moments_of_what_received_them() -> None:
    leg = Leg()
    landed = [RoomSpan(Step.LANDED, at, at, chunk=n, bytes=5) for n, at in enumerate((0.3, 0.4))]
    in_place = leg.record(
        RoomSpan(Step.RECEIVE, 0.25, 0.5, pages=9, bytes=10, provider="cma"), *landed, RoomSpan(Step.CLOSE, 0.5, 0.625)
    )
    assert in_place == OPENED + 625_000_000
    receive, close = leg.below()
    assert [(event.name, event.timestamp) for event in receive.events] == [
        ("landed", OPENED + 300_000_000),
        ("landed", OPENED + 400_000_000),
    ]
    assert (receive.name, close.name) == ("receive", "close")


def test_nothing_is_made_of_a_trace_that_is_not_sampled() -> None:
    leg = Leg(enabled=False)
    leg.record(CHUNK)
    assert leg.below() == []


def test_a_step_that_is_not_known_here_is_left_out() -> None:
    trace = RoomTrace(RoomId(7), RANK, "", OPENED, (CHUNK,), 0)
    message = wire.trace_message(trace)
    message.spans.add(step=99)  # type: ignore[arg-type]
    assert wire.trace_of(message, trace.room, trace.rank) == trace
