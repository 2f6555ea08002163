"""A rank agent in a thread of its own, attached to its service: for engines whose scheduler has no event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from tandem.core.errors import TandemError
from tandem.core.ids import PAIR, Nonce, RequestId, RoomId
from tandem.core.kv_index import KvChange
from tandem.core.kv_log import KvLog
from tandem.engine.port import RankInfo, Ticket
from tandem.engine.rank import open_rooms, reports, status, wire
from tandem.engine.rank.agent import RankAgent, RankSetup, RoomReport
from tandem.engine.rank.handles import ReceiverHandle, SenderHandle
from tandem.engine.rank.lone import LoneRank
from tandem.rpc import convert, held_pages
from tandem.rpc.client import open_channel
from tandem.v1 import rank_pb2, rank_pb2_grpc

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0


class ThreadedRank:
    """Everything here may be called from the engine's scheduler thread; only `start` and `close` wait."""

    def __init__(self, setup: RankSetup, hub_address: str, gauges: Callable[[], status.Gauges]) -> None:
        """hub_address: where the service's RankHub listens. gauges: reads the engine's numbers, on the rank's loop."""
        self._setup = setup
        self._hub_address = hub_address
        self._gauges = gauges
        self._held = KvLog(held_pages.MAX_HELD_PAGES)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._agent: RankAgent | LoneRank | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"tandem rank {setup.rank}", daemon=True)

    def start(self) -> None:
        """Starts the thread and returns once the rank is attached to its service.

        Raises TandemError, OSError or grpc.aio.AioRpcError with what went wrong.
        """
        self._thread.start()
        if not self._ready.wait(START_TIMEOUT_S):
            raise TimeoutError(f"rank {self._setup.rank} did not start in {START_TIMEOUT_S} s")
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Ends every room and the thread."""
        if self._loop is not None and self._stop is not None:
            self._post(self._stop.set)
            self._thread.join(START_TIMEOUT_S)

    def sender(self, room: int) -> SenderHandle:
        """Prefill's hold of a room."""
        handle = SenderHandle(RoomId(room), self._live_agent(), self._post)
        self._post(self._live_agent().attach, handle)
        return handle

    def receiver(self, room: int) -> ReceiverHandle:
        """Decode's hold of a room."""
        handle = ReceiverHandle(RoomId(room), self._live_agent(), self._post)
        self._post(self._live_agent().attach, handle)
        return handle

    def tell_held(self, changes: Sequence[KvChange]) -> None:
        """What has changed in the engine's prefix cache; their numbers do not count."""
        self._post(self._note_held, changes)

    def _note_held(self, changes: Sequence[KvChange]) -> None:
        for change in changes:
            self._held.apply(change)

    def _live_agent(self) -> RankAgent:
        assert isinstance(self._agent, RankAgent), "start() comes first, and a rank that works alone has no rooms"
        return self._agent

    def _post(self, call: Callable[..., object], *args: object) -> None:
        assert self._loop is not None, "start() comes first"
        # The loop may close at any moment, when the service hangs up. What a call would act on has ended then.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except (TandemError, OSError, grpc.aio.AioRpcError) as error:
            self._failure = error
            log.error("rank %s ended: %s", self._setup.rank, error)
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        attachment = _Attachment(self._setup, self._gauges, self._held)
        self._agent = attachment.agent
        try:
            async with open_channel(self._hub_address) as channel:
                info = await attachment.agent.start()
                call = rank_pb2_grpc.RankHubServiceStub(channel).Attach()
                await call.write(attachment.hello(info))
                self._ready.set()
                stop = asyncio.ensure_future(self._stop.wait())
                parts = [
                    stop,
                    asyncio.ensure_future(attachment.read(call)),
                    asyncio.ensure_future(attachment.write(call)),
                ]
                done, pending = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                for part in pending:
                    part.cancel()
                await asyncio.gather(*pending, return_exceptions=True)
                if stop not in done:
                    log.error("rank %s lost its service: %s", self._setup.rank, _why_lost(done))
                call.cancel()
        finally:
            await attachment.agent.close()


def _why_lost(ended: set[asyncio.Task[Any]]) -> str:
    """In words. Raises what is neither the service's end nor the connection's: a defect of ours."""
    for error in filter(None, (task.exception() for task in ended)):
        if not isinstance(error, grpc.aio.AioRpcError | asyncio.InvalidStateError):
            raise error
        return str(error.details() if isinstance(error, grpc.aio.AioRpcError) else error)
    return "it hung up"


class _Attachment:
    """The rank's end of RankHubService.Attach."""

    def __init__(self, setup: RankSetup, gauges: Callable[[], status.Gauges], held: KvLog) -> None:
        self._setup = setup
        paired = setup.role in PAIR
        self.agent = RankAgent(setup, on_room_ended=self._room_ended) if paired else LoneRank(setup.rank, setup.layout)
        self._gauges = gauges
        self._outbox: asyncio.Queue[rank_pb2.AttachRequest | None] = asyncio.Queue()
        """None stands for what has changed in the prefix cache; it is looked at when its turn comes."""
        self._held_waits = False
        self._held = held.follow(self._held_changed)

    def hello(self, info: RankInfo) -> rank_pb2.AttachRequest:
        """Who this rank is."""
        return rank_pb2.AttachRequest(
            hello=rank_pb2.RankHello(
                rank=convert.rank_to_proto(info.rank, info.kv_link_address),
                layout=convert.layout_to_proto(self._setup.layout),
                pid=os.getpid(),
            )
        )

    async def write(self, call: Any) -> None:
        """Writes what the rank has to say. The outbox is bounded by what it answers: tickets, rooms and polls."""
        while True:
            message = await self._outbox.get()
            if message is not None:
                await call.write(message)
                continue
            self._held_waits = False
            while (change := self._held.take(held_pages.PAGES_PER_MESSAGE)) is not None:
                await call.write(rank_pb2.AttachRequest(held_pages=held_pages.to_proto(change)))

    def _held_changed(self) -> None:
        if not self._held_waits:
            self._held_waits = True
            self._outbox.put_nowait(None)

    async def read(self, call: Any) -> None:
        """Carries out what the service asks, until it hangs up."""
        while (message := await call.read()) is not grpc.aio.EOF:
            match message.WhichOneof("message"):
                case "identity":
                    self.agent.identify(convert.life_from_proto(message.identity.worker))
                case "open_ticket":
                    await self._open(message.open_ticket)
                case "abort_room":
                    self.agent.abort_room(RoomId(message.abort_room.room), wire.why_of(message.abort_room.failure))
                case "peer_gone":
                    self.agent.peer_gone(convert.life_from_proto(message.peer_gone.peer))
                case "peer_joined":
                    joined = message.peer_joined
                    self.agent.peer_joined(convert.life_from_proto(joined.peer), joined.address)
                case "poll_status":
                    self._report(message.poll_status)
                case "poll_rooms":
                    self._list(message.poll_rooms)

    async def _open(self, message: rank_pb2.OpenTicket) -> None:
        now = asyncio.get_running_loop().time()
        ticket = Ticket(
            room=RoomId(message.room),
            nonce=Nonce(message.nonce),
            peer=convert.life_from_proto(message.peer),
            peer_address=message.peer_address,
            deadline=now + message.timeout_ms / 1000,
            prompt_tokens=message.prompt_tokens,
            traceparent=message.traceparent,
            request_id=RequestId(message.request_id),
        )
        opened = rank_pb2.TicketOpened(room=message.room)
        try:
            await self.agent.open_ticket(ticket)
        except TandemError as error:
            opened.failure.CopyFrom(wire.failure(wire.why_from(error)))
        self._outbox.put_nowait(rank_pb2.AttachRequest(ticket_opened=opened))

    def _room_ended(self, report: RoomReport) -> None:
        ended = rank_pb2.RoomEnded(room=report.room, success=report.why is None, kv_bytes=report.kv_bytes)
        if report.why is not None:
            ended.failure.CopyFrom(wire.failure(report.why))
        if report.trace is not None:
            ended.trace.CopyFrom(wire.trace_message(report.trace))
        self._outbox.put_nowait(rank_pb2.AttachRequest(room_ended=ended))

    def _report(self, poll: rank_pb2.PollStatus) -> None:
        now = status.rank_status(self._gauges(), self.agent.counters)
        metrics = reports.to_proto(self.agent.report()) if poll.metrics else None
        message = rank_pb2.RankStatus(status=status.to_proto(now), poll_id=poll.id, metrics=metrics)
        self._outbox.put_nowait(rank_pb2.AttachRequest(status=message))

    def _list(self, poll: rank_pb2.PollRooms) -> None:
        now = self.agent.rooms(poll.limit)
        message = rank_pb2.RankRooms(rooms=map(open_rooms.to_proto, now.rooms), total=now.total, poll_id=poll.id)
        self._outbox.put_nowait(rank_pb2.AttachRequest(rooms=message))
