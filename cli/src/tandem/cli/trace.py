"""`tandem trace`: asks a gateway for one trace and prints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from tandem.cli.services import TIMEOUT_S, answer_of
from tandem.cli.waterfall import table_of
from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import Credentials
from tandem.rpc.tracing.layout import ShownSpan, layout, read_span, total_ms
from tandem.v1 import admin_pb2, admin_pb2_grpc


@dataclass(frozen=True, slots=True)
class Trace:
    """One trace, from all services that answered."""

    trace_id: str
    spans: tuple[ShownSpan, ...]
    """In order of start."""
    dropped: int
    """Spans that are left out."""
    silent: dict[str, str]
    """Workers that did not answer, and what was wrong."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "trace_id": self.trace_id,
            "spans": [_document(span) for span in self.spans],
            "dropped_spans": self.dropped,
            "silent": self.silent,
        }


async def trace_of(admin: str, wanted: str, credentials: Credentials) -> Trace:
    """The trace of a request, or of this trace id.

    Raises TandemError: as the gateway says, or that it does not answer; INVALID_ARGUMENT if nobody keeps such a trace.
    """
    async with open_channel(admin, credentials) as channel:
        stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
        # Ids that the gateway gives to requests look like trace ids.
        keys = [{"request_id": wanted}] + ([{"trace_id": wanted.lower()}] if _is_trace_id(wanted) else [])
        for key in keys:
            call = stub.GetTrace(admin_pb2.AdminGetTraceRequest(**key), timeout=TIMEOUT_S)
            answer = await answer_of(call, f"gateway at {admin}")
            if answer.spans:
                return read(answer)
    silent = "".join(f"; {one.worker_id} did not answer" for one in answer.silent)
    raise TandemError(
        ErrorReason.INVALID_ARGUMENT,
        f"there is no trace of {wanted}: no such request, not sampled, or too long ago{silent}",
    )


def read(answer: admin_pb2.AdminGetTraceResponse) -> Trace:
    """The gateway's answer."""
    return Trace(
        answer.trace_id,
        tuple(read_span(span) for span in answer.spans),
        answer.dropped_spans,
        {one.worker_id: one.problem for one in answer.silent},
    )


def show(trace: Trace, console: Console) -> None:
    """Prints a waterfall, and what is missing in it."""
    lines = layout(trace.spans)
    console.print(f"trace {trace.trace_id}  {len(lines)} spans  {total_ms(lines):.2f} ms", highlight=False)
    console.print(table_of(lines))
    if trace.dropped:
        console.print(f"{trace.dropped} spans are left out.")
    for worker_id, problem in trace.silent.items():
        console.print(f"{worker_id} did not answer; its spans are missing. {problem}", highlight=False)


def _is_trace_id(text: str) -> bool:
    return len(text) == 32 and set(text.lower()) <= set("0123456789abcdef")


def _document(span: ShownSpan) -> dict[str, Any]:
    return {
        "span_id": span.span_id,
        "parent_span_id": span.parent_id,
        "name": span.name,
        "service": span.service,
        "instance": span.instance,
        "start_unix_ns": span.start_ns,
        "end_unix_ns": span.end_ns,
        "failed": span.failed,
        "message": span.message,
        "attributes": dict(span.attributes),
        "events": [{"name": name, "unix_ns": unix_ns} for name, unix_ns in span.events],
    }
