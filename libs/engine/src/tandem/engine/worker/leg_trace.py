"""The spans of one worker: of each room's leg, and of what its engine and its ranks did for it."""

from __future__ import annotations

import time

from opentelemetry.trace import Span

from tandem.core.errors import ErrorReason
from tandem.core.ids import Role, RoomId, WorkerId
from tandem.core.room.events import Why
from tandem.engine.port import Delta, Finish, RoomTrace
from tandem.engine.worker import room_spans
from tandem.rpc import convert, logs
from tandem.rpc.tracing import names
from tandem.rpc.tracing.provider import Tracing, Value, fail, remote, trace_id_of, traceparent_of
from tandem.v1 import session_pb2


class LegTraces:
    """The legs that are open on a worker. Everything happens on its loop."""

    def __init__(self, tracing: Tracing, role: Role, worker_id: WorkerId) -> None:
        self._tracing = tracing
        self.role = role
        """Of the legs that begin."""
        self._worker_id = worker_id
        self._open: dict[RoomId, LegTrace] = {}

    def begin(self, submit: session_pb2.Submit) -> LegTrace:
        """A leg begins. It has to end, as it is kept until then."""
        caller = remote(submit.traceparent, submit.tracestate)
        attributes: dict[str, Value] = {
            names.REQUEST_ID: submit.request_id,
            names.ROOM: str(submit.room),
            names.WORKER: self._worker_id,
            names.REQUEST_MODEL: submit.model,
            names.INPUT_TOKENS: len(submit.input_ids),
        }
        if submit.HasField("peer"):
            attributes[names.PEER] = str(convert.life_from_proto(submit.peer))
        span = self._tracing.enter(self.role.value, caller, attributes)
        leg = LegTrace(self, self._tracing, span, submit.request_id, generates=self.role is not Role.PREFILL)
        self._open[RoomId(submit.room)] = leg
        return leg

    def ended(self, room: RoomId) -> None:
        """A leg has ended."""
        self._open.pop(room, None)

    def room_traced(self, trace: RoomTrace) -> None:
        """A rank says what it noted of a room, whose leg may have ended."""
        landed_ns = room_spans.record(self._tracing, trace)
        leg = self._open.get(trace.room)
        if leg is not None and landed_ns:
            leg.landed(landed_ns)


class LegTrace:
    """One leg of one room."""

    def __init__(self, legs: LegTraces, tracing: Tracing, span: Span, request_id: str, *, generates: bool) -> None:
        self._legs = legs
        self._generates = generates
        self._tracing = tracing
        self._span = span
        self._request_id = request_id
        self._ticket = tracing.start(names.TICKET, span)
        self._opened = False
        self._landed_ns = 0
        self._first_ns = 0

    @property
    def traceparent(self) -> str:
        """For what happens below it."""
        return traceparent_of(self._span)

    def name_logs(self) -> None:
        """Lines that the running task logs from now on are of this request."""
        logs.about(self._request_id, trace_id_of(self._span))

    def opened(self) -> None:
        """The engine has the room."""
        if not self._opened:
            self._opened = True
            self._ticket.end()

    def landed(self, unix_ns: int) -> None:
        """Its KV is in place on one more rank."""
        self._landed_ns = max(self._landed_ns, unix_ns)

    def saw(self, delta: Delta) -> None:
        """News of the engine, before `ended`."""
        if not self._first_ns and delta.token_ids:
            self._first_ns = time.time_ns()
            self._span.add_event(names.FIRST_TOKEN, timestamp=self._first_ns)

    def ended(self, room: RoomId, finish: Finish) -> None:
        """The leg has ended."""
        self._legs.ended(room)
        span, now = self._span, time.time_ns()
        if finish.why is not None:
            self._fail(finish.why)
        self.opened()
        if self._landed_ns and self._first_ns > self._landed_ns:
            self._record(names.DECODE_QUEUE, self._landed_ns, self._first_ns)
        if self._generates and self._first_ns:
            self._record(names.GENERATE, self._first_ns, now)
        span.set_attribute(names.OUTCOME, finish.why.reason.value if finish.why is not None else finish.kind.value)
        if finish.completion_tokens:
            span.set_attribute(names.OUTPUT_TOKENS, finish.completion_tokens)
        if finish.cached_tokens:
            span.set_attribute(names.CACHED_TOKENS, finish.cached_tokens)
        span.end(now)

    def abandoned(self, room: RoomId) -> None:
        """Its Session is gone, and the engine knows it no more."""
        why = Why(ErrorReason.PEER_LOST, "the Session with the gateway ended")
        self._legs.ended(room)
        self._fail(why)
        self.opened()
        self._span.set_attribute(names.OUTCOME, why.reason.value)
        self._span.end()

    def _fail(self, why: Why) -> None:
        fail(self._span, why.reason, why.message)
        if not self._opened:
            fail(self._ticket, why.reason, why.message)

    def _record(self, name: str, start_ns: int, end_ns: int) -> None:
        self._tracing.start(name, self._span, start_ns=start_ns).end(end_ns)
