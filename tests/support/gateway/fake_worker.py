"""A worker that speaks the Session protocol over real gRPC and does what a script says."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Incarnation, Role, WorkerId, WorkerLife
from tandem.core.version import CURRENT
from tandem.rpc import convert
from tandem.rpc.server import GrpcServer
from tandem.v1 import bootstrap_pb2, bootstrap_pb2_grpc, decode_pb2_grpc, prefill_pb2_grpc, session_pb2
from tests.support.bootstrap.workers import worker

MODEL = "tandem-tiny"
CONTEXT_TOKENS = 512
PAGES = 100
"""Of 16 tokens; there are more where the context is longer."""
WAIT_S = 20
FIRST_TOKEN = 300

Send = Callable[[session_pb2.Delta], None]
Script = Callable[[session_pb2.Submit, Send], Awaitable[None]]
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


async def hand_over(submit: session_pb2.Submit, send: Send) -> None:
    """What a prefill worker does when all goes well."""
    kind = session_pb2.FINISH_KIND_HANDED_OVER
    logprobs = []
    if submit.logprobs.prompt:
        logprobs = [session_pb2.TokenLogprob(token_id=one, logprob=-2.0) for one in submit.input_ids]
    send(session_pb2.Delta(room=submit.room, prompt_logprobs=logprobs, finish=session_pb2.Finish(kind=kind)))


async def count_up(submit: session_pb2.Submit, send: Send) -> None:
    """What a decode worker does when all goes well: token 300 with the text "t0 ", 301 with "t1 ", ..."""
    for place in range(submit.sampling.max_new_tokens):
        delta = tokens_of(submit, place)
        if submit.HasField("logprobs"):
            tops = [
                session_pb2.TopLogprob(token_id=FIRST_TOKEN + place + k, logprob=-0.5 - k)
                for k in range(submit.logprobs.top)
            ]
            delta.logprobs.append(session_pb2.TokenLogprob(token_id=FIRST_TOKEN + place, logprob=-0.5, top=tops))
        send(delta)
        await asyncio.sleep(0)
    send(end_of(submit))


class Handover:
    """Scripts of two sides that keep a real pair's order: decode has no token before prefill has handed over."""

    def __init__(self) -> None:
        self._done: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)

    async def prefill(self, submit: session_pb2.Submit, send: Send) -> None:
        """Hands over, then lets decode go on."""
        await hand_over(submit, send)
        self._done[submit.room].set()

    async def decode(self, submit: session_pb2.Submit, send: Send) -> None:
        """Waits for prefill; a room that is cancelled before ends here."""
        await self._done[submit.room].wait()
        await count_up(submit, send)


def tokens_of(submit: session_pb2.Submit, place: int) -> session_pb2.Delta:
    """The token at a place of the answer."""
    return session_pb2.Delta(room=submit.room, token_ids=[FIRST_TOKEN + place], text=f"t{place} ")


def end_of(submit: session_pb2.Submit) -> session_pb2.Delta:
    """The last delta of an answer that reached its length."""
    finish = session_pb2.Finish(
        kind=session_pb2.FINISH_KIND_LENGTH,
        prompt_tokens=len(submit.input_ids),
        completion_tokens=submit.sampling.max_new_tokens,
        cached_tokens=1,
    )
    return session_pb2.Delta(room=submit.room, finish=finish)


def fail_with(reason: ErrorReason) -> Script:
    """A script that fails every room."""

    async def script(submit: session_pb2.Submit, send: Send) -> None:
        failure = convert.failure_to_proto(reason, f"scripted {reason.value}")
        finish = session_pb2.Finish(kind=session_pb2.FINISH_KIND_FAILED, failure=failure)
        send(session_pb2.Delta(room=submit.room, finish=finish))

    return script


def first_then_wait(count: int = 1) -> Script:
    """A script that sends some tokens and then nothing, until it is cancelled."""

    async def script(submit: session_pb2.Submit, send: Send) -> None:
        for place in range(count):
            send(tokens_of(submit, place))
        await asyncio.Event().wait()

    return script


async def say_nothing(submit: session_pb2.Submit, send: Send) -> None:
    """A script that never answers."""
    await asyncio.Event().wait()


class FakeWorker:
    """One life of one worker: its server, its rooms, and what it was told."""

    def __init__(
        self, worker_id: str, role: Role, script: Script, model: str = MODEL, tokenizer_path: str = ""
    ) -> None:
        self.worker_id = worker_id
        self.model = model
        self.tokenizer_path = tokenizer_path
        self.role = role
        self.script = script
        self.submits: list[session_pb2.Submit] = []
        self.parts = 0
        """Messages that they came in."""
        self.cancels: list[session_pb2.Cancel] = []
        self.sessions = 0
        """Sessions that are open."""
        self.welcomes = 0
        """Sessions that were ever opened."""
        self._news = asyncio.Condition()
        self._hang_up = asyncio.Event()
        self._life = WorkerLife(WorkerId(worker_id), Incarnation(0))
        self._server = GrpcServer()
        if role is Role.PREFILL:
            self._server.add(prefill_pb2_grpc.add_PrefillServiceServicer_to_server, self, "tandem.v1.PrefillService")
        else:
            self._server.add(decode_pb2_grpc.add_DecodeServiceServicer_to_server, self, "tandem.v1.DecodeService")

    async def start(self, bootstrap: bootstrap_pb2_grpc.BootstrapServiceStub) -> None:
        """Listens, and registers for ten minutes."""
        address = self._server.bind("127.0.0.1:0")
        await self._server.start()
        info = worker(
            self.worker_id,
            self.role,
            models=(self.model,),
            address=address,
            context_tokens=CONTEXT_TOKENS,
            total_pages=max(PAGES, CONTEXT_TOKENS // 16),
            tokenizer_path=self.tokenizer_path,
        )
        request = bootstrap_pb2.RegisterRequest(
            info=convert.worker_info_to_proto(info), instance_id=secrets.token_bytes(16)
        )
        response = await bootstrap.Register(request)
        self._life = WorkerLife(info.worker_id, Incarnation(response.incarnation))

    async def leave(self, bootstrap: bootstrap_pb2_grpc.BootstrapServiceStub) -> None:
        """Deregisters, and goes on running: what is left is a worker that bootstrap does not know."""
        await bootstrap.Deregister(bootstrap_pb2.DeregisterRequest(worker=convert.life_to_proto(self._life)))

    def hang_up(self) -> None:
        """Ends the Session that is open, and goes on living."""
        self._hang_up.set()
        self._hang_up = asyncio.Event()

    async def die(self) -> None:
        """Cuts every stream and stops to listen, as a crash does."""
        await self._server.stop(0)

    async def wait_until(self, true: Callable[[FakeWorker], bool]) -> None:
        """Returns when something is true of this worker."""
        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(lambda: true(self))

    async def Session(  # noqa: N802
        self, requests: AsyncIterator[session_pb2.SessionRequest], context: _Context
    ) -> AsyncIterator[session_pb2.SessionResponse]:
        """The protocol: Welcome, then one StepBatch per delta."""
        await anext(aiter(requests))
        welcome = session_pb2.SessionWelcome(
            version=convert.protocol_to_proto(CURRENT), worker=convert.life_to_proto(self._life)
        )
        yield session_pb2.SessionResponse(welcome=welcome)
        deltas: asyncio.Queue[session_pb2.Delta] = asyncio.Queue()
        rooms: dict[int, asyncio.Task[None]] = {}
        reader = asyncio.create_task(self._read(requests, rooms, deltas.put_nowait))
        await self._count_session(1)
        hang_up = asyncio.create_task(self._hang_up.wait())
        try:
            while not hang_up.done():
                delta = asyncio.create_task(deltas.get())
                await asyncio.wait({delta, hang_up}, return_when=asyncio.FIRST_COMPLETED)
                if delta.done():
                    yield session_pb2.SessionResponse(batch=session_pb2.StepBatch(deltas=[delta.result()]))
                else:
                    delta.cancel()
        finally:
            for task in (hang_up, reader, *rooms.values()):
                task.cancel()
            await self._count_session(-1)

    async def WatchStatus(  # noqa: N802
        self, request: session_pb2.WatchStatusRequest, context: _Context
    ) -> AsyncIterator[session_pb2.WatchStatusResponse]:
        """One status, with the number of rooms that it was ever sent."""
        status = session_pb2.WorkerStatus(worker=convert.life_to_proto(self._life), submitted=len(self.submits))
        yield session_pb2.WatchStatusResponse(status=status)
        await asyncio.Event().wait()

    async def WatchHeldPages(  # noqa: N802
        self, request: session_pb2.WatchHeldPagesRequest, context: _Context
    ) -> AsyncIterator[session_pb2.WatchHeldPagesResponse]:
        """Holds nothing, ever."""
        await asyncio.Event().wait()
        yield session_pb2.WatchHeldPagesResponse()

    async def Abort(self, request: session_pb2.AbortRequest, context: _Context) -> session_pb2.AbortResponse:  # noqa: N802
        """Knows no room."""
        return session_pb2.AbortResponse(found=False)

    async def SwitchRole(  # noqa: N802
        self, request: session_pb2.SwitchRoleRequest, context: _Context
    ) -> session_pb2.SwitchRoleResponse:
        """Has one role."""
        raise TandemError(ErrorReason.NOT_SUPPORTED, f"{self.worker_id} has one role")

    async def ListRankRooms(  # noqa: N802
        self, request: session_pb2.ListRankRoomsRequest, context: _Context
    ) -> session_pb2.ListRankRoomsResponse:
        """Has no ranks."""
        return session_pb2.ListRankRoomsResponse()

    async def GetStatus(  # noqa: N802
        self, request: session_pb2.GetStatusRequest, context: _Context
    ) -> session_pb2.GetStatusResponse:
        """Says nothing."""
        return session_pb2.GetStatusResponse()

    async def _read(
        self, requests: AsyncIterator[session_pb2.SessionRequest], rooms: dict[int, asyncio.Task[None]], send: Send
    ) -> None:
        async for request in requests:
            async with self._news:
                if request.WhichOneof("message") == "submit":
                    self.parts += 1
                    if request.submit.part:
                        self.submits[-1].input_ids.extend(request.submit.input_ids)
                    else:
                        self.submits.append(request.submit)
                    if not request.submit.more:
                        task = asyncio.ensure_future(self.script(self.submits[-1], send))
                        rooms[request.submit.room] = task  # type: ignore[assignment]
                elif request.WhichOneof("message") == "cancel":
                    self.cancels.append(request.cancel)
                    rooms[request.cancel.room].cancel()
                self._news.notify_all()

    async def _count_session(self, change: int) -> None:
        async with self._news:
            self.sessions += change
            self.welcomes += change > 0
            self._news.notify_all()
