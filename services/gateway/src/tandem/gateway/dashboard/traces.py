"""The traces of the last requests, from all services: gathered while somebody looks, and then once each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from tandem.core.errors import TandemError
from tandem.rpc.tracing import names
from tandem.rpc.tracing.facts import facts
from tandem.rpc.tracing.layout import Line, ShownSpan, layout, read_span, total_ms
from tandem.rpc.tracing.ring import TraceRing
from tandem.v1 import admin_pb2, trace_pb2

Gather = Callable[[trace_pb2.GetTraceRequest], Awaitable[admin_pb2.AdminGetTraceResponse]]
"""See tandem.gateway.operate.cluster_traces.ClusterTraces."""
Spawn = Callable[[Coroutine[Any, Any, None], str], object]
"""See tandem.rpc.tasks.TaskSupervisor."""

CONTENT: Final = frozenset({names.INPUT_MESSAGES, names.OUTPUT_MESSAGES})
"""What is not shown to whoever may look, even where it is traced."""


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One step of a request."""

    name: str
    service: str
    """Who did it: gateway, or a worker's id."""
    offset_ms: float
    """Its begin, after that of the trace."""
    duration_ms: float
    parent: int | None
    """Place of its parent in the trace's spans; None = it has none here."""
    status: str
    """ok, or the reason for which it failed."""
    facts: str
    """What is most worth to know of it, in words; see tandem.rpc.tracing.facts."""
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Numbers and names, such as pages and provider. Never text of a prompt or an answer."""


@dataclass(frozen=True, slots=True)
class ShownTrace:
    """One request."""

    request_id: str
    ended_ms: int
    """Since 1970."""
    duration_ms: float
    spans: Sequence[TraceStep]
    """Parents before their children."""


class TraceSource(Protocol):
    """Keeps the traces of the last requests."""

    def last(self, count: int) -> Sequence[ShownTrace]:
        """At most so many, the newest first. Called once a second while somebody looks; must not block."""


class RecentTraces:
    """The requests in this gateway's ring, with the spans of all services. What a look finds new is asked for, and is
    there at the next, even if that finds newer ones."""

    def __init__(self, ring: TraceRing, gather: Gather, spawn: Spawn) -> None:
        self._ring = ring
        self._gather = gather
        self._spawn = spawn
        self._known: dict[str, ShownTrace | None] = {}
        """By request, the newest last; None while it is asked for."""

    def last(self, count: int) -> Sequence[ShownTrace]:
        """See TraceSource."""
        for name in reversed(self._ring.newest_requests(count)):
            if name not in self._known:
                with suppress(TandemError):  # too many are asked for already
                    self._spawn(self._ask(name), f"trace of {name}")
                    self._known[name] = None
        there = [name for name, trace in self._known.items() if trace is not None]
        self._forget_before(there[-count:])
        return [trace for trace in reversed(self._known.values()) if trace is not None]

    def _forget_before(self, wanted: Sequence[str]) -> None:
        """Forgets what is older than these."""
        for name in list(self._known):
            if not wanted or name == wanted[0]:
                return
            del self._known[name]

    async def _ask(self, request_id: str) -> None:
        found: ShownTrace | None = None
        try:
            answer = await self._gather(trace_pb2.GetTraceRequest(request_id=request_id))
            if answer.spans:
                found = shown(request_id, [read_span(span) for span in answer.spans])
        finally:
            if found is None:
                self._known.pop(request_id, None)
            elif request_id in self._known:
                self._known[request_id] = found


def shown(request_id: str, spans: Sequence[ShownSpan]) -> ShownTrace:
    """A trace for the page."""
    lines = layout(spans)
    place = {line.span.span_id: number for number, line in enumerate(lines)}
    steps = [_step(line, place.get(line.span.parent_id)) for line in lines]
    began_ms = min((line.span.start_ns for line in lines), default=0) // 1_000_000
    return ShownTrace(request_id, began_ms + round(total_ms(lines)), total_ms(lines), steps)


def _step(line: Line, parent: int | None) -> TraceStep:
    span = line.span
    service = span.service.removeprefix("tandem-")
    return TraceStep(
        name=span.name,
        service=service if service == "gateway" else span.instance,
        offset_ms=line.offset_ms,
        duration_ms=line.duration_ms,
        parent=parent,
        status=str(span.attributes.get(names.ERROR_TYPE, "error")) if span.failed else "ok",
        facts=facts(span),
        attributes={name: value for name, value in span.attributes.items() if name not in CONTENT},
    )
