"""The last sampled traces of a service, in memory and bounded, so that `tandem trace` needs no collector."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from tandem.rpc.tracing import names


@dataclass(slots=True)
class Kept:
    """What is kept of one trace."""

    spans: list[ReadableSpan] = field(default_factory=list)
    """In order of their begin; those that still run are among them."""
    dropped: int = 0
    """Spans beyond the bound."""
    requests: set[str] = field(default_factory=set)


class TraceRing(SpanProcessor):
    """Keeps spans from their begin on. Everything happens on the service's loop."""

    def __init__(self, max_traces: int, max_spans: int) -> None:
        """max_traces: the oldest go first; 0 keeps none. max_spans: of one trace."""
        self._max_traces = max_traces
        self._max_spans = max_spans
        self._traces: OrderedDict[int, Kept] = OrderedDict()
        self._trace_of_request: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._traces)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Keeps a span."""
        del parent_context
        if not self._max_traces or span.context is None:
            return
        trace_id = span.context.trace_id
        kept = self._traces.get(trace_id)
        if kept is None:
            kept = self._traces[trace_id] = Kept()
            if len(self._traces) > self._max_traces:
                self._forget(*self._traces.popitem(last=False))
        if len(kept.spans) >= self._max_spans:
            kept.dropped += 1
            return
        kept.spans.append(span)
        if span.parent is None or span.parent.is_remote:
            self._note_request(trace_id, kept, span)

    def _note_request(self, trace_id: int, kept: Kept, span: Span) -> None:
        request_id = (span.attributes or {}).get(names.REQUEST_ID)
        # Bounded as the spans are: a client may send any number of requests under one trace.
        if isinstance(request_id, str):
            kept.requests.add(request_id)
            self._trace_of_request[request_id] = trace_id

    def _forget(self, trace_id: int, kept: Kept) -> None:
        for request_id in kept.requests:
            if self._trace_of_request.get(request_id) == trace_id:
                del self._trace_of_request[request_id]

    def trace(self, trace_id: int) -> Kept | None:
        """What is kept of a trace."""
        return self._traces.get(trace_id)

    def newest_requests(self, count: int) -> list[str]:
        """At most so many requests that have ended, the newest first."""
        newest = reversed(self._trace_of_request)
        return list(itertools.islice((name for name in newest if self._has_ended(name)), count))

    def _has_ended(self, request_id: str) -> bool:
        kept = self._traces[self._trace_of_request[request_id]]
        return all(span.end_time for span in kept.spans if (span.attributes or {}).get(names.REQUEST_ID) == request_id)

    def request(self, request_id: str) -> tuple[int, Kept] | None:
        """Trace id and spans of the last request of this id, without those of other requests in its trace."""
        trace_id = self._trace_of_request.get(request_id)
        kept = None if trace_id is None else self._traces.get(trace_id)
        if trace_id is None or kept is None:
            return None
        if kept.requests == {request_id}:
            return trace_id, kept
        return trace_id, Kept(_of_request(kept.spans, request_id), kept.dropped, {request_id})


def _of_request(spans: Iterable[ReadableSpan], request_id: str) -> list[ReadableSpan]:
    """The spans that name a request, and all below them. Children come after their parents."""
    inside: set[int] = set()
    found = []
    for span in spans:
        named = (span.attributes or {}).get(names.REQUEST_ID) == request_id
        if (named or (span.parent is not None and span.parent.span_id in inside)) and span.context is not None:
            inside.add(span.context.span_id)
            found.append(span)
    return found
