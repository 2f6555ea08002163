"""TraceService: shows what a service keeps of a trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.options import MAX_MESSAGE_BYTES
from tandem.rpc.server import GrpcServer
from tandem.rpc.tracing.provider import Tracing
from tandem.rpc.tracing.ring import Kept
from tandem.v1 import trace_pb2, trace_pb2_grpc

_SERVICE: Final = "tandem.v1.TraceService"
_MOST_BYTES: Final = MAX_MESSAGE_BYTES - 4096
_STATUS: Final = {
    StatusCode.UNSET: trace_pb2.SPAN_STATUS_UNSPECIFIED,
    StatusCode.OK: trace_pb2.SPAN_STATUS_OK,
    StatusCode.ERROR: trace_pb2.SPAN_STATUS_ERROR,
}


class TraceServicer(trace_pb2_grpc.TraceServiceServicer):
    """Answers from the ring of one service."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def GetTrace(  # noqa: N802 - the name is the contract's
        self, request: trace_pb2.GetTraceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> trace_pb2.GetTraceResponse:
        """The spans of one trace."""
        del context
        return kept_trace(self._tracing, request)


def add_trace_service(server: GrpcServer, tracing: Tracing) -> None:
    """Adds TraceService to a server."""
    server.add(trace_pb2_grpc.add_TraceServiceServicer_to_server, TraceServicer(tracing), _SERVICE)


def kept_trace(tracing: Tracing, request: trace_pb2.GetTraceRequest) -> trace_pb2.GetTraceResponse:
    """What a service keeps of a trace; no spans if it keeps none. Raises TandemError(INVALID_ARGUMENT)."""
    match request.WhichOneof("key"):
        case "request_id":
            found = tracing.ring.request(request.request_id)
        case "trace_id":
            trace_id = _number(request.trace_id)
            kept = tracing.ring.trace(trace_id)
            found = None if kept is None else (trace_id, kept)
        case _:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, "name a request_id or a trace_id", field="key")
    return trace_pb2.GetTraceResponse() if found is None else _response(tracing, *found)


def _number(trace_id: str) -> int:
    digits = "0123456789abcdef"
    if len(trace_id) != 32 or not set(trace_id.lower()) <= set(digits):
        raise TandemError(ErrorReason.INVALID_ARGUMENT, "a trace_id has 32 hexadecimal digits", field="trace_id")
    return int(trace_id, 16)


def _response(tracing: Tracing, trace_id: int, kept: Kept) -> trace_pb2.GetTraceResponse:
    spans = [_span(span, tracing.service, tracing.instance) for span in kept.spans]
    fitting = _that_fit(spans)
    dropped = kept.dropped + len(spans) - len(fitting)
    return trace_pb2.GetTraceResponse(trace_id=f"{trace_id:032x}", spans=fitting, dropped_spans=dropped)


def as_one(parts: Sequence[trace_pb2.GetTraceResponse]) -> trace_pb2.GetTraceResponse:
    """What several keep of one trace, as one message."""
    spans = [span for part in parts for span in part.spans]
    fitting = _that_fit(spans)
    return trace_pb2.GetTraceResponse(
        trace_id=next((part.trace_id for part in parts if part.trace_id), ""),
        spans=fitting,
        dropped_spans=sum(part.dropped_spans for part in parts) + len(spans) - len(fitting),
    )


def _that_fit(spans: Iterable[trace_pb2.TraceSpan]) -> list[trace_pb2.TraceSpan]:
    """The first spans, by start, that one message holds."""
    found, size = [], 0
    for span in sorted(spans, key=lambda one: one.start_unix_ns):
        size += span.ByteSize() + 8
        if size > _MOST_BYTES:
            break
        found.append(span)
    return found


def _span(span: ReadableSpan, service: str, instance: str) -> trace_pb2.TraceSpan:
    assert span.context is not None
    return trace_pb2.TraceSpan(
        span_id=f"{span.context.span_id:016x}",
        parent_span_id=f"{span.parent.span_id:016x}" if span.parent is not None else "",
        name=span.name,
        service=service,
        instance=instance,
        start_unix_ns=span.start_time or 0,
        end_unix_ns=span.end_time or 0,
        status=_STATUS[span.status.status_code],
        message=span.status.description or "",
        attributes=_attributes(span.attributes),
        events=[
            trace_pb2.TraceEvent(name=event.name, unix_ns=event.timestamp, attributes=_attributes(event.attributes))
            for event in span.events
        ],
    )


def _attributes(found: Mapping[str, Any] | None) -> list[trace_pb2.TraceAttribute]:
    return [_attribute(key, value) for key, value in (found or {}).items()]


def _attribute(key: str, value: Any) -> trace_pb2.TraceAttribute:
    match value:
        case bool():
            return trace_pb2.TraceAttribute(key=key, flag=value)
        case int():
            return trace_pb2.TraceAttribute(key=key, number=value)
        case float():
            return trace_pb2.TraceAttribute(key=key, real=value)
        case str():
            return trace_pb2.TraceAttribute(key=key, text=value)
        case _:
            return trace_pb2.TraceAttribute(key=key, text=",".join(map(str, value)))
