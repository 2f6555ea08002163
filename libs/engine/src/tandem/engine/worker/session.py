"""One Session: a gateway's rooms on this worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol

from tandem.core import version
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RankId, Role, RoomId, WorkerLife
from tandem.core.room.events import Why
from tandem.engine.port import Delta, Engine, EngineFacts, Finish, FinishKind
from tandem.engine.rank import wire
from tandem.engine.worker import submit
from tandem.engine.worker.deltas import DeltaBuffer
from tandem.engine.worker.leg_trace import LegTrace, LegTraces
from tandem.engine.worker.page_shares import PageShare, PageShares
from tandem.rpc import convert
from tandem.rpc.streams import first_of
from tandem.rpc.tasks import TaskSupervisor
from tandem.v1 import session_pb2

log = logging.getLogger(__name__)

LAST_WORDS_MS: Final = 2_000
"""Longest that a gateway may take to read what was said before a life was over."""


class SessionHost(Protocol):
    """What a Session needs of its worker."""

    role: Role
    engine: Engine
    facts: EngineFacts
    life: WorkerLife
    traces: LegTraces
    shares: PageShares

    @property
    def refusing(self) -> bool:
        """Whether new rooms are refused."""

    def take_room(self) -> None:
        """Counts a room in. Raises TandemError(OVERLOADED) if there are too many."""

    def room_ended(self) -> None:
        """Counts a room out."""

    async def peer_addresses(self, peer: WorkerLife) -> dict[RankId, str]:
        """KvLink addresses of a peer. Raises TandemError(PEER_LOST) if it does not appear in the view in time."""


class Session:
    """Reads Submit and Cancel, writes StepBatch. When it ends, its rooms end."""

    def __init__(self, host: SessionHost) -> None:
        self._host = host
        self._buffer = DeltaBuffer()
        self._share: PageShare
        self._submits = submit.SubmitCollector(host.facts.context_tokens, self._refuse)
        self._rooms: dict[RoomId, LegTrace] = {}
        self._tasks = TaskSupervisor(max_tasks=65_536)

    async def run(
        self,
        requests: AsyncIterator[session_pb2.SessionRequest],
        write: Callable[[session_pb2.SessionResponse], Awaitable[None]],
        over: asyncio.Event,
    ) -> None:
        """Serves the stream to its end. over: set when the worker's life is; what its rooms have said is written then.

        Raises TandemError: PROTOCOL_VIOLATION, VERSION_MISMATCH for a stream that does not start as it must; DRAINING
        when the life is over.
        """
        first = await first_of(requests, "a Session starts with SessionHello")
        if first.WhichOneof("message") != "hello":
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "a Session starts with SessionHello")
        gateway = first.hello.gateway_id
        version.agree(version.CURRENT, convert.protocol_from_proto(first.hello.version), gateway)
        welcome = session_pb2.SessionWelcome(
            version=convert.protocol_to_proto(version.CURRENT), worker=convert.life_to_proto(self._host.life)
        )
        await write(session_pb2.SessionResponse(welcome=welcome))
        log.info("session with %s opened", gateway)
        self._share = self._host.shares.join(self._others_changed)
        writer = asyncio.ensure_future(self._write(write))
        reader = asyncio.ensure_future(self._read(requests))
        ended = asyncio.ensure_future(over.wait())
        try:
            await asyncio.wait({writer, reader, ended}, return_when=asyncio.FIRST_COMPLETED)
            if over.is_set():
                reader.cancel()
                self._buffer.close()
                await asyncio.wait({writer}, timeout=LAST_WORDS_MS / 1000)
        finally:
            # All of it shielded: gRPC cancels the call of a client that has gone, maybe after the reader has seen that.
            await asyncio.shield(asyncio.ensure_future(self._end(gateway, reader, writer, ended)))
        if over.is_set():
            raise TandemError(ErrorReason.DRAINING, f"this life of {convert.life_from_proto(welcome.worker)} is over")

    async def _end(self, gateway: str, *parts: asyncio.Future[Any]) -> None:
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        # Not CANCELLED: nobody asked for that. Another gateway, or this one over a new Session, may try again.
        why = Why(ErrorReason.PEER_LOST, f"the session with {gateway} ended")
        log.info("%s; %d rooms were open", why.message, len(self._rooms))
        await self._tasks.close()
        for room in list(self._rooms):
            if not await self._host.engine.abort(room, why) and room in self._rooms:
                self._rooms[room].abandoned(room)
                self._finished(room)
        self._share.leave()

    async def _write(self, write: Callable[[session_pb2.SessionResponse], Awaitable[None]]) -> None:
        while (batch := await self._buffer.take()) is not None:
            await write(session_pb2.SessionResponse(batch=batch))

    async def _read(self, requests: AsyncIterator[session_pb2.SessionRequest]) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "submit":
                    if (whole := self._submits.add(request.submit)) is not None:
                        self._submit(whole)
                case "cancel":
                    room, why = RoomId(request.cancel.room), wire.why_of(request.cancel.failure)
                    self._submits.cancel(room, TandemError(why.reason, why.message))
                    self._tasks.spawn(self._cancel(room, why), f"cancel {room}")
                case "put_aside":
                    self._share.put_aside(wanted=request.put_aside.wanted)
                case _:
                    raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "a Session takes Submit, Cancel and PutAside")

    def _submit(self, message: session_pb2.Submit) -> None:
        room = RoomId(message.room)
        if room in self._rooms:
            log.warning("room %d was submitted again; the first one goes on", room)
            return
        leg = self._host.traces.begin(message)
        try:
            if self._host.refusing:
                raise TandemError(ErrorReason.DRAINING, f"worker {self._host.life.worker_id} is shutting down")
            submit.check(message, self._host.facts, self._host.role)
            self._host.take_room()
        except TandemError as error:
            leg.ended(room, Finish(FinishKind.FAILED, why=wire.why_from(error)))
            self._refuse(room, error)
            return
        self._rooms[room] = leg
        if self._host.role is not Role.PREFILL:
            self._share.keep(room, message.decode_dp_rank, len(message.input_ids) + message.sampling.max_new_tokens)
        self._tasks.spawn(self._start(message, leg), f"submit {room}")

    def _refuse(self, room: RoomId, error: TandemError) -> None:
        """Ends a room that was not opened; one of that number that runs goes on."""
        if room not in self._rooms:
            self._buffer.put(_failed(room, error))

    async def _start(self, message: session_pb2.Submit, leg: LegTrace) -> None:
        leg.name_logs()
        room, host = RoomId(message.room), self._host
        now = asyncio.get_running_loop().time()
        prefill = host.role is Role.PREFILL
        try:
            dials = host.role is Role.DECODE
            addresses = await host.peer_addresses(submit.peer_of(message)) if dials else {}
            job = submit.job_of(
                message,
                now,
                dp_rank=message.prefill_dp_rank if prefill else message.decode_dp_rank,
                peer_dp_rank=message.decode_dp_rank if prefill else message.prefill_dp_rank,
                peer_addresses=addresses,
                traceparent=leg.traceparent,
            )
            await host.engine.submit(job, self._sink)
            leg.opened()
        except TandemError as error:
            self._sink(_failed(room, error))

    async def _cancel(self, room: RoomId, why: Why) -> None:
        if (leg := self._rooms.get(room)) is not None:
            leg.name_logs()
            await self._host.engine.abort(room, why)

    def _sink(self, delta: Delta) -> None:
        """Takes the engine's news. Rooms of a Session that is gone end in silence."""
        leg = self._rooms.get(delta.room)
        if leg is None:
            return
        self._buffer.put(delta)
        leg.saw(delta)
        if delta.finish is not None:
            leg.ended(delta.room, delta.finish)
            self._finished(delta.room)

    def _finished(self, room: RoomId) -> None:
        if self._rooms.pop(room, None) is not None:
            self._share.free(room)
            self._host.room_ended()

    def _others_changed(self) -> None:
        self._buffer.tell_others(self._others)

    def _others(self) -> session_pb2.OtherRooms:
        return session_pb2.OtherRooms(pages=self._share.others, put_aside=self._share.taken)


def _failed(room: RoomId, error: TandemError) -> Delta:
    return Delta(room, finish=Finish(FinishKind.FAILED, why=wire.why_from(error)))
