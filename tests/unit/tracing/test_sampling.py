"""Who decides what is recorded, and what is passed on."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import INVALID_SPAN, StatusCode

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.tracing import names
from tandem.rpc.tracing.provider import (
    Tracing,
    fail,
    remote,
    sampled,
    trace_id_of,
    traceparent_of,
    tracestate_of,
)
from tandem.rpc.tracing.settings import TraceSettings

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED, NOT_SAMPLED = (f"00-{TRACE_ID}-00f067aa0ba902b7-0{flag}" for flag in (1, 0))


def tracing(**settings: object) -> Tracing:
    """Of a gateway."""
    return Tracing("gateway", "g0", TraceSettings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ratio", "caller", "recorded"),
    [
        (1.0, "", True),
        (0.0, "", False),
        (0.0, SAMPLED, True),
        (1.0, NOT_SAMPLED, False),
        (1.0, "nonsense", True),
        (0.0, "nonsense", False),
    ],
)
def test_the_caller_decides_and_else_the_ratio(ratio: float, caller: str, recorded: bool) -> None:
    span = tracing(sample_ratio=ratio).enter("x", remote(caller), {})
    assert sampled(span) is recorded
    assert (trace_id_of(span) == TRACE_ID) is (TRACE_ID in caller)


def test_a_ratio_takes_its_share() -> None:
    one = tracing(sample_ratio=0.25)
    taken = sum(sampled(one.enter("x", INVALID_SPAN, {})) for _ in range(2000))
    assert 350 < taken < 650


def test_nothing_is_recorded_where_tracing_is_off() -> None:
    off = tracing(enabled=False)
    span = off.enter("x", remote(SAMPLED), {})
    child = off.start("y", span, {"a": 1})
    assert not sampled(span)
    assert len(off.ring) == 0
    assert child is span, "nothing is made for it"
    assert traceparent_of(child).startswith(f"00-{TRACE_ID}-")
    assert traceparent_of(child).endswith("-00")


def test_what_vendors_say_is_passed_on() -> None:
    one = tracing()
    span = one.start("y", one.enter("x", remote(SAMPLED, "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"), {}))
    assert tracestate_of(span) == "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    assert tracestate_of(one.enter("x", remote(SAMPLED, "a=" + "b" * 600), {})) == ""
    assert tracestate_of(one.enter("x", remote(SAMPLED), {})) == ""


def test_a_parent_is_what_the_caller_says_and_children_lie_below() -> None:
    one = tracing()
    span = one.enter("x", remote(SAMPLED), {})
    child = one.start("y", span)
    assert isinstance(span, ReadableSpan)
    assert isinstance(child, ReadableSpan)
    assert span.parent is not None
    assert child.parent is not None
    assert f"{span.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert child.parent.span_id == span.get_span_context().span_id  # type: ignore[attr-defined]
    assert remote(traceparent_of(child)).get_span_context().span_id == child.get_span_context().span_id  # type: ignore[attr-defined]


def test_two_services_in_one_process_know_nothing_of_each_other() -> None:
    first, second = tracing(), Tracing("decode", "d0", TraceSettings())
    first.enter("x", INVALID_SPAN, {})
    assert (len(first.ring), len(second.ring)) == (1, 0)


def test_a_failure_is_an_attribute_and_a_status() -> None:
    span = tracing().enter("x", INVALID_SPAN, {})
    fail(span, ErrorReason.LINK_LOST, "gone")
    assert isinstance(span, ReadableSpan)
    assert (span.attributes or {})[names.ERROR_TYPE] == "LINK_LOST"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "gone")


def test_long_texts_are_cut() -> None:
    span = tracing().enter("x", INVALID_SPAN, {"a": "b" * 100_000})
    assert isinstance(span, ReadableSpan)
    assert len(str((span.attributes or {})["a"])) == 16_384


def test_names_are_those_of_the_conventions() -> None:
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    assert set(names.CONVENTIONAL) <= known


def test_an_rpc_has_a_span_below_its_caller() -> None:
    one = tracing()
    call = one.call("/tandem.v1.BootstrapService/Drain", SAMPLED, "")
    call.end("NOT_FOUND", TandemError(ErrorReason.UNKNOWN_WORKER, "no such worker"))
    kept = one.ring.trace(int(TRACE_ID, 16))
    assert kept is not None
    (span,) = kept.spans
    assert span.name == "tandem.v1.BootstrapService/Drain"
    assert (span.attributes or {})["rpc.response.status_code"] == "NOT_FOUND"
    assert (span.attributes or {})[names.ERROR_TYPE] == "UNKNOWN_WORKER"
