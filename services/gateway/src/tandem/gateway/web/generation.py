"""The endpoints that generate: from the body of a request to the last byte of its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import orjson
from starlette.types import Receive, Scope, Send

from tandem.core.affinity import key_of_text
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.fair_queue import Ask
from tandem.core.page_ledger import Seat
from tandem.core.refusals import Refused
from tandem.core.tenants import Account
from tandem.gateway.admission.slots import Place, Slots
from tandem.gateway.admission.tenants import Bill, Tenants
from tandem.gateway.admission.waiting_room import WaitingRoom
from tandem.gateway.admission.wishes import PRIORITY_HEADER, priority_of, timeout_s
from tandem.gateway.api.chat_answers import HeardChatAnswer
from tandem.gateway.api.fields import parse_object
from tandem.gateway.api.generate_answers import GenerateAnswer
from tandem.gateway.api.messages_answers import MessagesAnswer, failure_event
from tandem.gateway.api.messages_blocks import HeardMessagesAnswer
from tandem.gateway.api.openai_answers import OpenAiAnswer, chat_head, event
from tandem.gateway.api.problems import ErrorShape, problem_of
from tandem.gateway.api.responses_answers import ResponsesAnswer, broken_off
from tandem.gateway.api.responses_schema import gone_on
from tandem.gateway.calls import Api, GenerateCall, Message, ResponsePlan, Sequence
from tandem.gateway.gateway_metrics import GatewayMetrics, Stopwatch
from tandem.gateway.mailbox import Mailbox, News, news_of
from tandem.gateway.routing.request_trace import note_answers, note_call, note_prompts
from tandem.gateway.routing.room_runs import Journey
from tandem.gateway.routing.router import Router
from tandem.gateway.siblings.responses import Responses
from tandem.gateway.text.speech import Parsers
from tandem.gateway.transcript import Transcript
from tandem.gateway.web.bodies import READ_TIMEOUT_MS, read_body_in_time
from tandem.gateway.web.front import Visit, visit_of
from tandem.gateway.web.line import Line, line_of
from tandem.gateway.web.prepare import Preparer
from tandem.rpc.tasks import contained
from tandem.rpc.tracing import names
from tandem.rpc.tracing.provider import Tracing, fail
from tandem.v1 import session_pb2

log = logging.getLogger(__name__)

WRITE_GRACE_S: Final = 5.0
"""After a request's deadline: time for a slow client to take what is written to it."""

ReadCall = Callable[[dict[str, Any]], GenerateCall]
Put = Callable[[int, session_pb2.Delta | None], bool]
"""Takes news of a sequence, by its index; see tandem.gateway.mailbox.Mailbox.put."""


class Answer(Protocol):
    """Shape of an answer; see tandem.gateway.api.openai_answers and generate_answers."""

    def document(self) -> Any:
        """The whole answer."""

    def events(self, news: list[News]) -> bytes:
        """Takes news; returns the events that they bring."""

    def end(self) -> bytes:
        """The last events."""


@dataclass(frozen=True, slots=True)
class GenerationLimits:
    """What one request may take."""

    max_body_bytes: int
    request_timeout_ms: int
    stream_buffer_tokens: int
    retry_after_s: int
    read_timeout_ms: int = READ_TIMEOUT_MS


@dataclass(frozen=True, slots=True)
class Works:
    """What generation needs of the rest of the gateway."""

    preparer: Preparer
    router: Router
    reading: Slots
    """Requests that have no place yet and do not wait for one: their bodies are read and tokenized."""
    room: WaitingRoom
    tenants: Tenants
    metrics: GatewayMetrics
    limits: GenerationLimits
    tracing: Tracing
    responses: Responses
    parsers: Parsers | None = None
    """What takes answers apart; None: they are text."""


@dataclass(frozen=True, slots=True)
class _Request:
    """One request that was read."""

    call: GenerateCall
    visit: Visit
    watch: Stopwatch
    reply: Reply
    deadline: float
    """In the loop's seconds."""
    account: Account
    """Of its tenant."""


class GenerationEndpoint:
    """ASGI application of one generating endpoint."""

    def __init__(self, read_call: ReadCall, works: Works) -> None:
        """read_call: checks a body of this endpoint."""
        self._read_call = read_call
        self._works = works

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request. Raises TandemError only if no response has begun."""
        visit = visit_of(scope)
        watch = Stopwatch(self._works.metrics, visit.endpoint)
        given_s = timeout_s(visit.timeout, self._works.limits.request_timeout_ms / 1000)
        deadline = asyncio.get_running_loop().time() + given_s
        account = self._works.tenants.account_of(visit.owner)
        try:
            self._works.tenants.count_request(account)
            with self._works.reading.holding() as place:
                call = await self._read(scope, receive, visit)
                line = line_of(scope)
                request = _Request(call, visit, watch, Reply(send, line), deadline, account)
                await unless_gone(line, self._answer(request, place))
        except Refused as refused:
            self._works.metrics.count_refusal(refused.refusal)
            visit.headers.update(self._works.tenants.headers(account))
            raise

    async def _read(self, scope: Scope, receive: Receive, visit: Visit) -> GenerateCall:
        reading = self._works.tracing.start(names.READ, visit.span)
        try:
            limits = self._works.limits
            body = await read_body_in_time(scope, receive, limits.max_body_bytes, limits.read_timeout_ms)
            call = self._read_call(parse_object(body))
            if call.plan is not None:
                call = await self._gone_on(call, call.plan, visit.owner)
        finally:
            reading.end()
        note_call(visit.span, call)
        return call

    async def _gone_on(self, call: GenerateCall, plan: ResponsePlan, owner: str) -> GenerateCall:
        before: tuple[Message, ...] = ()
        if plan.previous_id:
            kept = await self._works.responses.get(plan.previous_id, owner, "previous_response_id")
            before = kept.messages
        return gone_on(call, plan, before, owner)

    async def _answer(self, request: _Request, place: Place) -> None:
        """place: is given back when the request is read."""
        visit, reply = request.visit, request.reply
        try:
            async with asyncio.timeout_at(request.deadline + WRITE_GRACE_S):
                sequences = await self._prepare(request.call, visit)
                prompts = [one for one in sequences if not one.choice]
                request.watch.prepared(sequences[0].model, sum(len(one.input_ids) for one in prompts))
                place.give_back()
                await self._admitted(request, sequences)
        except TimeoutError:
            error = TandemError(ErrorReason.CANCELLED, "The client did not take its answer in time.")
            self._broke_off(request, error)
            # Nothing more can be told: its connection is full. uvicorn closes it, as its answer is not whole.
            return
        except TandemError as error:
            self._broke_off(request, error)
            await reply.write(_broken_off(request.call.api, error, self._works.limits.retry_after_s), more=False)
        request.watch.ended()

    def _broke_off(self, request: _Request, error: TandemError) -> None:
        """Notes why an answer is not whole. Raises it if nothing of it was sent, so that it can be told."""
        if not request.reply.begun:
            raise error
        self._works.metrics.count_error(request.visit.endpoint, error.reason, request.visit.request_id)
        log.warning("the answer broke off: %s", error)
        fail(request.visit.span, error.reason, error.message)

    async def _admitted(self, request: _Request, sequences: tuple[Sequence, ...]) -> None:
        """Generates once the tenant may, and when it is the request's turn."""
        works, visit, account = self._works, request.visit, request.account
        account.tenant.require_model(sequences[0].model)
        ask = _ask(request, sequences)
        with works.tenants.charged(account, ask.cost) as bill:
            visit.headers.update(works.tenants.headers(account))
            async with works.room.place(ask, visit.span):
                await self._generate(request, sequences, ask.seats, bill)

    async def _generate(
        self, request: _Request, sequences: tuple[Sequence, ...], seats: tuple[Seat, ...], bill: Bill
    ) -> None:
        call, visit, watch = request.call, request.visit, request.watch
        session = key_of_text(visit.session or call.session)
        journey = Journey(visit.request_id, visit.span, request.deadline, session, seats)
        transcripts = [Transcript(sequence) for sequence in sequences]
        answer = self._shape(call, visit, watch, transcripts)
        try:
            if call.stream:
                await self._stream(sequences, journey, answer, request.reply, watch)
            else:
                await self._gather(sequences, journey, transcripts, watch)
                await request.reply.json(answer.document())
        finally:
            bill.used = sum(len(one.sequence.input_ids) + one.completion_tokens for one in transcripts)
            note_answers(visit.span, transcripts, content=self._works.tracing.content)
            if watch.first_token_s is not None:
                visit.span.set_attribute(names.TIME_TO_FIRST_CHUNK, watch.first_token_s)

    async def _prepare(self, call: GenerateCall, visit: Visit) -> tuple[Sequence, ...]:
        tracing = self._works.tracing
        span = tracing.start(names.TOKENIZE, visit.span)
        try:
            sequences = await self._works.preparer.prepare(call)
        finally:
            span.end()
        note_prompts(visit.span, sequences, content=tracing.content)
        return sequences

    def _shape(self, call: GenerateCall, visit: Visit, watch: Stopwatch, transcripts: list[Transcript]) -> Answer:
        text_of = transcripts[0].sequence.texts.token_text
        if call.api is Api.GENERATE:
            return GenerateAnswer(call, visit.request_id, transcripts, text_of, watch.elapsed)
        model = transcripts[0].sequence.model
        if call.plan is not None:
            return self._response(call, call.plan, transcripts[0])
        if call.hearing is not None and self._works.parsers is not None:
            if call.api is Api.MESSAGES:
                listener = self._works.parsers.listener(call.hearing)
                return HeardMessagesAnswer(model, visit.request_id, transcripts[0], listener)
            head = chat_head(model, visit.request_id, int(time.time()))
            return HeardChatAnswer(call, head, transcripts, text_of, self._works.parsers)
        if call.api is Api.MESSAGES:
            return MessagesAnswer(model, visit.request_id, transcripts[0])
        return OpenAiAnswer(call, model, visit.request_id, int(time.time()), transcripts, text_of)

    def _response(self, call: GenerateCall, plan: ResponsePlan, transcript: Transcript) -> Answer:
        parsers, hearing = self._works.parsers, call.hearing
        listener = None if parsers is None or hearing is None else parsers.listener(hearing)
        head = {"model": transcript.sequence.model, "created_at": int(time.time())}
        return ResponsesAnswer(plan, head, transcript, listener, self._works.responses.put)

    async def _stream(
        self, sequences: SequenceOf[Sequence], journey: Journey, answer: Answer, reply: Reply, watch: Stopwatch
    ) -> None:
        """Runs all sequences, and writes what comes of them until the client has all of it or is too far behind."""
        now, most = asyncio.get_running_loop().time, self._works.limits.stream_buffer_tokens * len(sequences)
        async with asyncio.timeout(None) as patience:
            mailbox = Mailbox(most, lambda: patience.reschedule(now()))
            task = asyncio.create_task(_run_all(self._works.router, sequences, journey, mailbox.put))
            task.add_done_callback(partial(_close_mailbox, mailbox))
            try:
                await self._write(answer, mailbox, reply, watch)
            finally:
                task.cancel()
                await asyncio.wait({task})

    async def _gather(
        self, sequences: SequenceOf[Sequence], journey: Journey, transcripts: list[Transcript], watch: Stopwatch
    ) -> None:
        """Runs all sequences to their end; who waits for a whole answer is not told before."""

        def take(index: int, delta: session_pb2.Delta | None) -> bool:
            news = news_of(index, delta)
            watch.saw([news])
            if news.void:
                transcripts[index].clear()
            transcripts[index].add(news.delta)
            return True

        await _run_all(self._works.router, sequences, journey, take)

    async def _write(self, answer: Answer, mailbox: Mailbox, reply: Reply, watch: Stopwatch) -> None:
        """Writes a stream to its end."""
        line = reply.line

        def write_at_once(one: News) -> bool:
            if not line.open or one.delta.HasField("finish"):
                return False
            news = [one]
            watch.saw(news)
            line.write(answer.events(news))
            return True

        def broken(error: Exception) -> bool:
            mailbox.close(error if isinstance(error, TandemError) else TandemError(ErrorReason.INTERNAL))
            return True

        at_once = contained(write_at_once, broken)
        while news := await mailbox.take():
            watch.saw(news)
            await reply.begin_stream()
            await reply.write(answer.events(news))
            mailbox.hand_over_at_once(at_once)
            del news  # it keeps the message that it came in, which had news of others too
        await reply.write(answer.end(), more=False)


class Reply:
    """Writes one response. The first write decides its status, so that it waits for the first token."""

    def __init__(self, send: Send, line: Line | None = None) -> None:
        self._send = send
        self.line = line or Line()
        """A shorter way for the pieces of a stream, where it is open."""
        self.begun = False

    async def json(self, document: object) -> None:
        """A whole response."""
        body = orjson.dumps(document)
        await self._begin("application/json", [(b"content-length", str(len(body)).encode())])
        await self.write(body, more=False)

    async def begin_stream(self) -> None:
        """Headers of a stream of events, once."""
        if not self.begun:
            await self._begin("text/event-stream; charset=utf-8", [(b"cache-control", b"no-cache")])

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """One piece of the body, in one write; waits while the client's connection is full."""
        if data or not more:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _begin(self, media_type: str, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        headers = [(b"content-type", media_type.encode()), *headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})


def _ask(request: _Request, sequences: SequenceOf[Sequence]) -> Ask:
    """What a request wants of the waiting room."""
    tenant = request.account.tenant
    return Ask(
        tenant.name,
        sum(len(one.input_ids) + one.sampling.max_new_tokens for one in sequences),
        len(sequences),
        tenant.class_of(priority_of(request.visit.priority, PRIORITY_HEADER) or request.call.priority),
        request.deadline,
        tenant.weight,
        tenant.max_concurrent,
        sequences[0].model,
        tuple(Seat(len(one.input_ids) + one.sampling.max_new_tokens) for one in sequences),
    )


def _broken_off(api: Api, error: TandemError, retry_after_s: int) -> bytes:
    """The last event of a stream that went wrong."""
    if api is Api.MESSAGES:
        return failure_event(problem_of(error, retry_after_s, ErrorShape.ANTHROPIC))
    if api is Api.RESPONSES:
        return broken_off(problem_of(error, retry_after_s))
    return event(problem_of(error, retry_after_s).body)


async def unless_gone(line: Line, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`, which is cancelled when the client goes before its response is whole; raises CANCELLED then."""
    now = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(None) as patience:
            line.when_gone(lambda: patience.reschedule(now()))
            try:
                await work
            finally:
                line.when_gone(None)
    except TimeoutError:
        if not patience.expired():
            raise
        raise TandemError(ErrorReason.CANCELLED, "The client has gone.") from None


async def _run_all(router: Router, sequences: SequenceOf[Sequence], journey: Journey, put: Put) -> None:
    """Runs sequences side by side. The first that fails ends all; raises its error."""
    if len(sequences) == 1:
        await router.run(sequences[0], journey, partial(put, sequences[0].index))
        return
    failed: list[TandemError] = []
    try:
        async with asyncio.TaskGroup() as group:
            for one in sequences:
                group.create_task(router.run(one, journey, partial(put, one.index)))
    except* TandemError as errors:
        failed += [error for error in errors.exceptions if isinstance(error, TandemError)]
    if failed:
        raise failed[0]


def _close_mailbox(mailbox: Mailbox, task: asyncio.Task[None]) -> None:
    """However the sequences ended, nobody waits for them any longer."""
    error = TandemError(ErrorReason.INTERNAL) if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, TandemError):
        log.error("generation crashed", exc_info=error)
        error = TandemError(ErrorReason.INTERNAL)
    mailbox.close(error)
