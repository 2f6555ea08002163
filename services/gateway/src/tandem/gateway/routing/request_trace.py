"""The spans of one client request in the gateway: what it asked, where it was sent, and how each attempt ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Final, Protocol

import orjson
from opentelemetry.trace import Span, SpanKind

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role
from tandem.gateway.calls import Api, ChatPrompt, GenerateCall, Item, Sequence, TextPrompt
from tandem.gateway.routing.attempt import Legs
from tandem.gateway.transcript import Transcript
from tandem.rpc.tracing import names
from tandem.rpc.tracing.provider import Tracing, Value, fail, sampled, traceparent_of, tracestate_of
from tandem.v1 import session_pb2

_OPERATIONS: Final = {
    Api.CHAT: "chat",
    Api.COMPLETION: "text_completion",
    Api.GENERATE: "text_completion",
    Api.MESSAGES: "chat",
    Api.RESPONSES: "chat",
}


_WORKERS: Final = {
    Role.PREFILL: names.PREFILL_WORKER,
    Role.DECODE: names.DECODE_WORKER,
    Role.UNIFIED: names.UNIFIED_WORKER,
}
CANDIDATES: Final = {
    Role.PREFILL: names.PREFILL_CANDIDATES,
    Role.DECODE: names.DECODE_CANDIDATES,
    Role.UNIFIED: names.UNIFIED_CANDIDATES,
}
"""Attribute that says from how many workers of a role one was chosen."""
POLICIES: Final = {
    Role.PREFILL: names.PREFILL_POLICY,
    Role.DECODE: names.DECODE_POLICY,
    Role.UNIFIED: names.UNIFIED_POLICY,
}
"""Attribute that says by which policy."""
HELD_TOKENS: Final = {
    Role.PREFILL: names.PREFILL_HELD_TOKENS,
    Role.DECODE: names.DECODE_HELD_TOKENS,
    Role.UNIFIED: names.UNIFIED_HELD_TOKENS,
}
"""Attribute that says how much of the prompt it is known to hold."""


def note_call(span: Span, call: GenerateCall) -> None:
    """What the client asked for, without its text."""
    if not sampled(span):
        return
    sampling = call.items[0].sampling
    facts: dict[str, Value] = {names.OPERATION: _OPERATIONS[call.api], names.REQUEST_STREAM: call.stream}
    if call.model:
        facts[names.REQUEST_MODEL] = call.model
    if call.sequences > 1:
        facts[names.REQUEST_CHOICES] = call.sequences
    if sampling.max_new_tokens:
        facts[names.REQUEST_MAX_TOKENS] = sampling.max_new_tokens
    if sampling.HasField("temperature"):
        facts[names.REQUEST_TEMPERATURE] = round(sampling.temperature, 6)
    if sampling.HasField("top_p"):
        facts[names.REQUEST_TOP_P] = round(sampling.top_p, 6)
    span.set_attributes(facts)


def note_prompts(span: Span, sequences: SequenceOf[Sequence], *, content: bool) -> None:
    """What the call has become. content: write the prompts too."""
    if not sampled(span):
        return
    prompts = [one for one in sequences if one.choice == 0]
    model = sequences[0].model
    span.set_attributes(
        {
            names.REQUEST_MODEL: model,
            names.RESPONSE_MODEL: model,
            names.INPUT_TOKENS: sum(len(one.input_ids) for one in prompts),
        }
    )
    if content:
        messages = [message for one in prompts for message in _messages(one.item)]
        span.set_attribute(names.INPUT_MESSAGES, orjson.dumps(messages).decode())


def note_answers(span: Span, transcripts: SequenceOf[Transcript], *, content: bool) -> None:
    """What has come of it so far. content: write the answers too."""
    if not sampled(span):
        return
    span.set_attribute(names.OUTPUT_TOKENS, sum(one.completion_tokens for one in transcripts))
    span.set_attribute(names.CACHED_TOKENS, sum(one.cached_tokens for one in transcripts))
    span.set_attribute(names.FINISH_REASONS, [one.finish_reason or "error" for one in transcripts])
    if content:
        answers = [_message("assistant", one.text) for one in transcripts]
        span.set_attribute(names.OUTPUT_MESSAGES, orjson.dumps(answers).decode())


def _messages(item: Item) -> list[dict[str, object]]:
    match item.prompt:
        case ChatPrompt(messages):
            return [_message(one.role, one.content) for one in messages]
        case TextPrompt(text):
            return [_message("user", text)]
        case _:
            return []  # token ids


def _message(role: str, text: str) -> dict[str, object]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


class Telling(Protocol):
    """The part of an attempt that its trace looks at; see tandem.gateway.routing.attempt.Attempt."""

    @property
    def teller(self) -> Role:
        """Whose token came last."""


def _workers(legs: Legs) -> dict[str, Value]:
    return {_WORKERS[role]: str(life) for role, life in legs.items()}


class RouteTrace:
    """The span of one choice of workers, and of the wait for some."""

    def __init__(self, tracing: Tracing, request: Span, sequence: Sequence, avoided: int) -> None:
        self._span = tracing.start(names.ROUTE, request, {names.SEQUENCE: sequence.index, names.AVOIDED: avoided})

    def chose(self, legs: Legs, facts: dict[str, Value]) -> None:
        """Workers were found."""
        self._span.set_attributes(_workers(legs) | facts)
        self._span.end()

    def failed(self, error: TandemError) -> None:
        """There are none."""
        fail(self._span, error.reason, error.message)
        self._span.end()


class AttemptTrace:
    """The span of one attempt. What workers record of its room hangs below it."""

    def __init__(self, tracing: Tracing, request: Span, sequence: Sequence, number: int) -> None:
        self._tracing = tracing
        facts: dict[str, Value] = {names.ATTEMPT: number, names.SEQUENCE: sequence.index}
        self._span = tracing.start(names.ATTEMPT_SPAN, request, facts, kind=SpanKind.CLIENT)
        self._recorded = sampled(self._span)
        self._began_ns = time.time_ns()
        self._first_ns = 0
        self._attempt: Telling | None = None

    def submit(self, submit: session_pb2.Submit, legs: Legs, resumed_tokens: int) -> None:
        """Puts the trace into the room's Submit, and the room into the trace."""
        submit.traceparent = traceparent_of(self._span)
        submit.tracestate = tracestate_of(self._span)
        if self._recorded:
            facts: dict[str, Value] = {
                names.ROOM: str(submit.room),
                **_workers(legs),
                names.INPUT_TOKENS: len(submit.input_ids),
            }
            if resumed_tokens:
                facts[names.RESUMED_TOKENS] = resumed_tokens
            self._span.set_attributes(facts)

    def noting(self, deliver: Callable[[session_pb2.Delta], bool]) -> Callable[[session_pb2.Delta], bool]:
        """The same, and the first token is noted where the attempt is recorded."""
        if not self._recorded:
            return deliver

        def note(delta: session_pb2.Delta) -> bool:
            if not self._first_ns and delta.token_ids:
                self._saw_first()
            return deliver(delta)

        return note

    def follow(self, attempt: Telling) -> None:
        """This is the attempt."""
        self._attempt = attempt

    def _saw_first(self) -> None:
        self._first_ns = time.time_ns()
        assert self._attempt is not None, "it runs once it is followed"
        self._record(names.FIRST_TOKEN, self._began_ns, self._first_ns, {names.SOURCE: self._attempt.teller.value})

    def ended(self, failure: TandemError | None) -> None:
        """It is over."""
        if not self._recorded:
            return
        now = time.time_ns()
        if self._first_ns:
            self._record(names.STREAM, self._first_ns, now, {})
        if failure is not None:
            fail(self._span, failure.reason, failure.message)
        self._span.set_attribute(names.OUTCOME, "complete" if failure is None else failure.reason.value)
        self._span.end(now)

    def given_up(self, *, late: bool) -> None:
        """The request ended before it. late: as its time was over."""
        reason = ErrorReason.DEADLINE_EXCEEDED if late else ErrorReason.CANCELLED
        self.ended(TandemError(reason, "The request ended before the attempt did."))

    def _record(self, name: str, start_ns: int, end_ns: int, facts: dict[str, Value]) -> None:
        self._tracing.start(name, self._span, facts, start_ns=start_ns).end(end_ns)
