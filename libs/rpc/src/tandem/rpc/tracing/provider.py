"""Makes spans: one `Tracing` per service instance, never OpenTelemetry's global one, as tests run several at once.

Parents are handed on, not taken from the context: a worker's loop serves many requests at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.telemetry import parse
from tandem.rpc.tracing import names
from tandem.rpc.tracing.ring import TraceRing
from tandem.rpc.tracing.settings import TraceSettings

if TYPE_CHECKING:
    from tandem.rpc.tracing.export import SayOnce

Value = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Value]

MAX_TEXT: Final = 16_384
"""Longest text of an attribute, in characters."""
MAX_TRACESTATE: Final = 512
_LIMITS: Final = SpanLimits(
    max_span_attributes=64,
    max_events=512,
    max_links=8,
    max_event_attributes=8,
    max_span_attribute_length=MAX_TEXT,
    max_attribute_length=MAX_TEXT,
)
_EMPTY: Final = Context()


class Tracing:
    """The spans of one service."""

    def __init__(self, service: str, instance: str, settings: TraceSettings) -> None:
        """service: e.g. "gateway". instance: name of this process, e.g. its worker id."""
        self.service = f"tandem-{service}"
        self.instance = instance
        self.content = settings.content
        """Whether prompts and answers belong into spans."""
        self.ring = TraceRing(settings.kept_traces, settings.kept_spans)
        resource = {
            "service.name": self.service,
            "service.namespace": "tandem",
            "service.instance.id": instance,
        }
        sampler = ParentBased(TraceIdRatioBased(settings.sample_ratio)) if settings.enabled else ALWAYS_OFF
        self._provider = TracerProvider(sampler, Resource.create(resource), shutdown_on_exit=False, span_limits=_LIMITS)
        self._provider.add_span_processor(self.ring)
        self._exporter: SayOnce | None = None
        if settings.enabled and settings.endpoint:
            # Its import takes every process a fifth of a second, so only those that export have it.
            from tandem.rpc.tracing.export import batches_of, exporter_of

            self._exporter = exporter_of(settings)
            self._provider.add_span_processor(batches_of(settings, self._exporter))
        self._tracer = self._provider.get_tracer("tandem")

    def enter(self, name: str, caller: Span, attributes: Attributes) -> Span:
        """The first span of a request in this service. caller: as `remote` gives it; decides what is sampled."""
        return self._tracer.start_span(name, set_span_in_context(caller, _EMPTY), SpanKind.SERVER, attributes)

    def start(
        self,
        name: str,
        parent: Span,
        attributes: Attributes | None = None,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        start_ns: int | None = None,
    ) -> Span:
        """A span below another; the other itself, which records nothing, where that is not sampled.

        start_ns: nanoseconds since 1970; None = now.
        """
        if not sampled(parent):
            return parent
        context = set_span_in_context(parent, _EMPTY)
        return self._tracer.start_span(name, context, kind, attributes, start_time=start_ns)

    def call(self, method: str, traceparent: str, tracestate: str) -> RpcSpan:
        """The span of an RPC that this service was called with, `/package.Service/Method`."""
        name = method.strip("/")
        facts = {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: name}
        return RpcSpan(self.enter(name, remote(traceparent, tracestate), facts))

    async def close(self) -> None:
        """Sends what waits for its export, bounded, and ends."""
        if self._exporter is not None:
            self._exporter.closing()
            await asyncio.to_thread(self._provider.shutdown)


class RpcSpan:
    """See tandem.rpc.interceptors.OpenCall."""

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """For what happens below it."""
        return traceparent_of(self._span)

    def end(self, code: str, error: TandemError | None) -> None:
        """The RPC ended with this status code."""
        self._span.set_attribute(names.RPC_STATUS, code)
        if error is not None:
            fail(self._span, error.reason, error.message)
        self._span.end()


def remote(traceparent: str, tracestate: str = "") -> Span:
    """The caller's span, from its headers; none where they are not what W3C wants."""
    given = parse(traceparent)
    if given is None:
        return INVALID_SPAN
    state = TraceState.from_header([tracestate]) if tracestate and len(tracestate) <= MAX_TRACESTATE else None
    flags = TraceFlags(TraceFlags.SAMPLED if given.sampled else TraceFlags.DEFAULT)
    return NonRecordingSpan(SpanContext(given.trace_id, given.span_id, True, flags, state))


def sampled(span: Span) -> bool:
    """Whether what happens below a span is recorded."""
    return bool(span.get_span_context().trace_flags.sampled)


def traceparent_of(span: Span) -> str:
    """W3C's header of a span; empty if it is none."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags.sampled):02x}"


def tracestate_of(span: Span) -> str:
    """W3C's header of what vendors said before; mostly empty."""
    state = span.get_span_context().trace_state
    return state.to_header() if state else ""


def trace_id_of(span: Span) -> str:
    """32 hexadecimal digits; empty if it is no span."""
    context = span.get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def fail(span: Span, reason: ErrorReason, message: str) -> None:
    """The span failed. message: for people; no text of a user's."""
    span.set_attribute(names.ERROR_TYPE, reason.value)
    span.set_status(StatusCode.ERROR, message)
