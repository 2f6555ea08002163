"""What ranks note of rooms, as spans below the leg that the room is of."""

from __future__ import annotations

from typing import Final

from opentelemetry.trace import Span

from tandem.core.room.timeline import RoomSpan, Step
from tandem.engine.port import RoomTrace
from tandem.rpc.tracing import names
from tandem.rpc.tracing.provider import Tracing, Value, fail, remote

_LANDED: Final = (Step.RECEIVE, Step.CLOSE)
"""Steps of decode that end with the room's KV in place."""


def record(tracing: Tracing, trace: RoomTrace) -> int:
    """Records a rank's spans of one room.

    Returns when its KV was in place, in nanoseconds since 1970; 0 if it never was, or this is no decode rank.
    """
    leg = remote(trace.traceparent)
    rank = f"dp{trace.rank.dp}.pp{trace.rank.pp}.tp{trace.rank.tp}"
    landed_ns = 0
    receive: Span | None = None
    for span in trace.spans:
        if span.step is Step.LANDED:
            continue
        start_ns, end_ns = unix_ns(trace, span.start_s), unix_ns(trace, span.end_s)
        made = tracing.start(span.step.value, leg, {names.RANK: rank, **facts_of(span)}, start_ns=start_ns)
        if span.step is Step.RECEIVE:
            receive = made
            _note_landed(made, trace)
        if span.reason is not None:
            fail(made, span.reason, "")
        elif span.step in _LANDED:
            landed_ns = max(landed_ns, end_ns)
        if trace.dropped and span.step in (Step.RECEIVE, Step.COMPUTE):
            made.set_attribute(names.CHUNKS_DROPPED, trace.dropped)
        made.end(end_ns)
    return landed_ns if receive is not None else 0


def facts_of(span: RoomSpan) -> dict[str, Value]:
    """Its attributes; what does not belong to its kind is left out."""
    found: dict[str, Value] = {}
    if span.step is Step.CHUNK:
        found[names.CHUNK] = span.chunk
    if span.pages or span.step is Step.CHUNK:
        found[names.PAGES] = span.pages
    if span.bytes:
        found[names.BYTES] = span.bytes
        if span.step is Step.CHUNK and span.end_s > span.start_s:
            found[names.GB_PER_S] = float(f"{span.bytes / (span.end_s - span.start_s) / 1e9:.3g}")
    if span.provider:
        found[names.PROVIDER] = span.provider
    if span.prefix_tokens:
        found[names.PREFIX_TOKENS] = span.prefix_tokens
    if span.buffers:
        found[names.FIRST_BUFFER] = span.first_buffer
        found[names.BUFFERS] = span.buffers
    return found


def unix_ns(trace: RoomTrace, at_s: float) -> int:
    """A time of a room as nanoseconds since 1970."""
    return trace.opened_unix_ns + int(at_s * 1e9)


def _note_landed(receive: Span, trace: RoomTrace) -> None:
    for span in trace.spans:
        if span.step is Step.LANDED:
            facts: dict[str, Value] = {names.CHUNK: span.chunk, names.BYTES: span.bytes}
            receive.add_event(Step.LANDED.value, facts, unix_ns(trace, span.start_s))
