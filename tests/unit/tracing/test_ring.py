"""What a service remembers of its last traces, and what it forgets."""

from __future__ import annotations

import pytest
from opentelemetry.trace import INVALID_SPAN, Span

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.options import MAX_MESSAGE_BYTES
from tandem.rpc.tracing import names
from tandem.rpc.tracing.provider import Tracing, remote, trace_id_of
from tandem.rpc.tracing.service import kept_trace
from tandem.rpc.tracing.settings import TraceSettings
from tandem.v1 import trace_pb2

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def tracing(**settings: int) -> Tracing:
    """Of a worker."""
    return Tracing("decode", "d0", TraceSettings(**settings))  # type: ignore[arg-type]


def entry(one: Tracing, request_id: str, caller: str = "") -> Span:
    """The first span of a request."""
    return one.enter("decode", remote(caller), {names.REQUEST_ID: request_id})


def asked(one: Tracing, **key: str) -> trace_pb2.GetTraceResponse:
    """As TraceService answers."""
    return kept_trace(one, trace_pb2.GetTraceRequest(**key))  # type: ignore[arg-type]


def test_the_oldest_trace_goes_first() -> None:
    one = tracing(kept_traces=2)
    spans = [entry(one, f"r{number}") for number in range(4)]
    assert len(one.ring) == 2
    assert [len(asked(one, request_id=f"r{number}").spans) for number in range(4)] == [0, 0, 1, 1]
    assert not asked(one, trace_id=trace_id_of(spans[0])).spans
    assert len(one.ring._trace_of_request) == 2, "nor are their names kept"


def test_a_trace_keeps_so_many_spans_and_counts_the_rest() -> None:
    one = tracing(kept_spans=3)
    parent = entry(one, "r")
    for _ in range(5):
        one.start("chunk", parent).end()
    found = asked(one, request_id="r")
    assert ([span.name for span in found.spans], found.dropped_spans) == (["decode", "chunk", "chunk"], 3)


def test_requests_beyond_the_bound_of_their_trace_leave_no_names() -> None:
    one = tracing(kept_spans=3)
    for number in range(10):
        entry(one, f"r{number}", CALLER)
    assert len(one.ring._trace_of_request) == 3


def test_none_are_kept_where_none_are_wanted() -> None:
    one = tracing(kept_traces=0)
    entry(one, "r").end()
    assert not asked(one, request_id="r").spans


def test_spans_that_run_are_there() -> None:
    one = tracing()
    parent = entry(one, "r")
    one.start("ticket", parent).end()
    running, ended = asked(one, request_id="r").spans
    assert (running.end_unix_ns, running.name) == (0, "decode")
    assert ended.end_unix_ns >= ended.start_unix_ns > 0
    parent.end()
    assert asked(one, request_id="r").spans[0].end_unix_ns > 0


def test_requests_of_one_trace_are_told_apart() -> None:
    one = tracing()
    first, second = entry(one, "r1", CALLER), entry(one, "r2", CALLER)
    one.start("generate", one.start("ticket", first))
    one.start("close", second)
    assert [span.name for span in asked(one, request_id="r1").spans] == ["decode", "ticket", "generate"]
    assert [span.name for span in asked(one, request_id="r2").spans] == ["decode", "close"]
    assert len(asked(one, trace_id=trace_id_of(first)).spans) == 5


def test_a_request_id_that_comes_again_means_the_last() -> None:
    one = tracing()
    first, last = entry(one, "r"), entry(one, "r")
    assert asked(one, request_id="r").trace_id == trace_id_of(last) != trace_id_of(first)


def test_values_keep_their_kind() -> None:
    one = tracing()
    facts = {"text": "x", "number": 7, "real": 0.5, "flag": True, "list": ("a", "b")}
    one.enter("decode", INVALID_SPAN, {names.REQUEST_ID: "r", **facts}).add_event("landed", {"n": 1}, 17)
    (span,) = asked(one, request_id="r").spans
    found = {item.key: getattr(item, item.WhichOneof("value") or "") for item in span.attributes}
    assert found == {names.REQUEST_ID: "r", **facts, "list": "a,b"}
    assert [(event.name, event.unix_ns, event.attributes[0].number) for event in span.events] == [("landed", 17, 1)]


def test_an_answer_fits_a_message() -> None:
    one = tracing()
    parent = entry(one, "r")
    for _ in range(200):
        one.start("chunk", parent, {"text": "x" * 16_000})
    found = asked(one, request_id="r")
    assert found.ByteSize() <= MAX_MESSAGE_BYTES
    assert len(found.spans) + found.dropped_spans == 201
    assert found.spans[0].name == "decode"


@pytest.mark.parametrize("key", [{}, {"trace_id": "12"}, {"trace_id": "x" * 32}])
def test_what_is_no_id_is_refused(key: dict[str, str]) -> None:
    with pytest.raises(TandemError) as caught:
        asked(tracing(), **key)
    assert caught.value.reason is ErrorReason.INVALID_ARGUMENT
