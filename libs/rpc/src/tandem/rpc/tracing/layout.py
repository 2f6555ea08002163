"""One trace laid out: which span lies below which, when it began, and how long it took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tandem.v1 import trace_pb2

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class ShownSpan:
    """One span. Times are nanoseconds since 1970."""

    span_id: str
    parent_id: str
    """Empty for a span that begins a trace."""
    name: str
    service: str
    instance: str
    start_ns: int
    end_ns: int
    """0 while it runs."""
    failed: bool
    message: str
    attributes: Mapping[str, Value]
    events: tuple[tuple[str, int], ...] = ()
    """Name and time of each moment in it."""


@dataclass(frozen=True, slots=True)
class Line:
    """One span in its place."""

    span: ShownSpan
    depth: int
    """0 for a span whose parent is not there: it begins the trace, or what is above it is not known."""
    offset_ms: float
    """From the begin of the first span."""
    duration_ms: float
    """Of a span that runs: as far as is known."""


def layout(spans: Iterable[ShownSpan]) -> tuple[Line, ...]:
    """Parents before their children, siblings in order of start. Every span is there once, whatever its parents say."""
    known = {span.span_id: span for span in spans}
    below: defaultdict[str, list[ShownSpan]] = defaultdict(list)
    for span in known.values():
        below[span.parent_id if span.parent_id in known else ""].append(span)
    begin = min((span.start_ns for span in known.values()), default=0)
    end = max((max(span.start_ns, span.end_ns) for span in known.values()), default=0)
    lines: list[Line] = []
    waiting = _by_start(below[""], 0)
    while waiting:
        span, depth = waiting.pop()
        length_ns = (span.end_ns or end) - span.start_ns
        lines.append(Line(span, depth, (span.start_ns - begin) / 1e6, max(0, length_ns) / 1e6))
        waiting += _by_start(below[span.span_id], depth + 1)
    return tuple(lines)


def _by_start(spans: Sequence[ShownSpan], depth: int) -> list[tuple[ShownSpan, int]]:
    """The last first, so that the first is popped first."""
    ordered = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns), reverse=True)
    return [(span, depth) for span in ordered]


def total_ms(lines: Iterable[Line]) -> float:
    """From the begin of the first span to the end of the last."""
    return max((line.offset_ms + line.duration_ms for line in lines), default=0.0)


def read_span(span: trace_pb2.TraceSpan) -> ShownSpan:
    """A span as a service shows it."""
    return ShownSpan(
        span.span_id,
        span.parent_span_id,
        span.name,
        span.service,
        span.instance,
        span.start_unix_ns,
        span.end_unix_ns,
        span.status == trace_pb2.SPAN_STATUS_ERROR,
        span.message,
        {one.key: _value(one) for one in span.attributes},
        tuple((event.name, event.unix_ns) for event in span.events),
    )


def _value(attribute: trace_pb2.TraceAttribute) -> Value:
    found: Value = getattr(attribute, attribute.WhichOneof("value") or "text")
    return found
