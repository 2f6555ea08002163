"""The service's side of its engine ranks: they attach over a unix socket, and it opens rooms on them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RankId, RoomId, WorkerLife
from tandem.core.kv_log import KvLog
from tandem.core.layout import KvLayout
from tandem.core.room.events import Why
from tandem.engine.port import EngineStatus, Job, Measured, OpenRooms, RankInfo, RoomTraceSink
from tandem.engine.rank import open_rooms, reports, status, wire
from tandem.rpc import convert, held_pages
from tandem.rpc.server import GrpcServer
from tandem.rpc.streams import first_of
from tandem.v1 import common_pb2, rank_pb2, rank_pb2_grpc

log = logging.getLogger(__name__)

_SERVICE = "tandem.v1.RankHubService"
TICKET_TIMEOUT_MS: Final = 5_000
"""A rank that does not open a ticket in this time is stuck."""
STATUS_TIMEOUT_MS: Final = 2_000
ENDED_ROOMS: Final = 8_192


class _Rank:
    """One attached rank."""

    def __init__(self, hello: rank_pb2.RankHello) -> None:
        self.rank = convert.rank_from_proto(hello.rank)
        self.info = RankInfo(self.rank, hello.rank.kv_link_address)
        self.layout = convert.layout_from_proto(hello.layout)
        self.pid = hello.pid
        self.outbox: asyncio.Queue[rank_pb2.AttachResponse] = asyncio.Queue(maxsize=65_536)
        self.tickets: dict[RoomId, asyncio.Future[None]] = {}
        self.polls: dict[int, asyncio.Future[Any]] = {}
        """Answers that are awaited, by the number of the question."""

    def send(self, **message: Any) -> None:
        """Queues one message. Raises TandemError(OVERLOADED) if the rank does not read."""
        try:
            self.outbox.put_nowait(rank_pb2.AttachResponse(**message))
        except asyncio.QueueFull as error:
            raise TandemError(ErrorReason.OVERLOADED, f"rank {self.rank} does not read its messages") from error

    def answered(self, poll: int, answer: object) -> None:
        """Takes an answer to a question that may be given up by now."""
        future = self.polls.get(poll)
        if future is not None and not future.done():
            future.set_result(answer)

    def lost(self, error: TandemError) -> None:
        """Fails what waits for the rank."""
        waiting: list[asyncio.Future[Any]] = [*self.tickets.values(), *self.polls.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(error)


class RankHub(rank_pb2_grpc.RankHubServiceServicer):
    """Where the ranks of one engine attach. A rank that is lost ends the engine."""

    def __init__(
        self,
        expected_ranks: int,
        *,
        on_room_failed: Callable[[RoomId, Why], None] = lambda *_: None,
        on_room_traced: RoomTraceSink = lambda _: None,
    ) -> None:
        """on_room_failed: called on the loop for the first rank that reports a failed room. on_room_traced: for every
        rank that says what it noted of a room."""
        self._expected = expected_ranks
        self._on_room_failed = on_room_failed
        self._on_room_traced = on_room_traced
        self._ranks: dict[RankId, _Rank] = {}
        self._all_here = asyncio.Event()
        self._failed: asyncio.Future[TandemError] = asyncio.get_running_loop().create_future()
        self._failures: OrderedDict[RoomId, Why] = OrderedDict()
        self._poll_ids = itertools.count(1)
        self.held_pages = KvLog(held_pages.MAX_HELD_PAGES)
        """What the prefix cache holds. Ranks that share one prompt hold the same of it, and one of them tells."""
        self._directory = tempfile.TemporaryDirectory(prefix="tandem-hub-")
        self._server = GrpcServer()
        self._closing = False

    async def start(self) -> str:
        """Listens on a unix socket in a private directory; returns its address."""
        self._server.add(rank_pb2_grpc.add_RankHubServiceServicer_to_server, self, _SERVICE)
        address = self._server.bind(f"unix:{Path(self._directory.name) / 'hub.sock'}")
        await self._server.start()
        return address

    async def wait_ranks(self, timeout_ms: int) -> tuple[tuple[RankInfo, ...], KvLayout]:
        """Waits until every rank is attached; returns them in order, and their layout.

        Raises TandemError: ENGINE_FAILED if they don't come in time, LAYOUT_MISMATCH if they differ.
        """
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._all_here.wait()
        except TimeoutError as error:
            raise TandemError(
                ErrorReason.ENGINE_FAILED,
                f"{len(self._ranks)} of {self._expected} engine ranks came up in {timeout_ms} ms",
            ) from error
        ranks = [self._ranks[rank] for rank in sorted(self._ranks)]
        if any(rank.layout != ranks[0].layout for rank in ranks):
            raise TandemError(ErrorReason.LAYOUT_MISMATCH, "the ranks of this engine have different KV layouts")
        return tuple(rank.info for rank in ranks), ranks[0].layout

    def release(self) -> None:
        """Ranks that are attached may go: those that attach from now on take their places, see `wait_ranks`."""
        self._ranks.clear()
        self._all_here.clear()
        self._failures.clear()
        self.held_pages = KvLog(held_pages.MAX_HELD_PAGES)

    def identify(self, life: WorkerLife) -> None:
        """Tells the ranks the worker's name and life."""
        for rank in self._ranks.values():
            rank.send(identity=rank_pb2.RankIdentity(worker=convert.life_to_proto(life)))

    async def open_tickets(self, job: Job) -> None:
        """Opens the job's room on every rank of its dp rank; returns once all have done so.

        Raises TandemError as the first rank that refused it did, DEADLINE_EXCEEDED if one is stuck.
        """
        loop = asyncio.get_running_loop()
        ranks = [rank for rank in self._ranks.values() if rank.rank.dp == job.dp_rank]
        if not ranks:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"there is no dp rank {job.dp_rank}", field="dp_rank")
        timeout_ms = max(1, int((job.deadline - loop.time()) * 1000))
        for rank in ranks:
            if job.room in rank.tickets:
                raise TandemError(ErrorReason.ROOM_EXISTS, f"room {job.room} is being opened already")
            rank.tickets[job.room] = loop.create_future()
        try:
            for rank in ranks:
                rank.send(open_ticket=_ticket(job, rank.rank, timeout_ms))
            await asyncio.wait(
                [rank.tickets[job.room] for rank in ranks], timeout=min(timeout_ms, TICKET_TIMEOUT_MS) / 1000
            )
            refusal = _first_refusal([rank.tickets[job.room] for rank in ranks])
            if refusal is not None:
                self._take_back(ranks, job.room, refusal)
                raise refusal
        finally:
            for rank in ranks:
                rank.tickets.pop(job.room, None)

    def _take_back(self, ranks: list[_Rank], room: RoomId, refusal: TandemError) -> None:
        """Ends a room on the ranks that opened it, or may still do so; others keep theirs."""
        for rank in ranks:
            ticket = rank.tickets[room]
            if not ticket.done() or ticket.exception() is None:
                rank.send(abort_room=rank_pb2.AbortRoom(room=room, failure=wire.failure(wire.why_from(refusal))))

    def abort(self, room: RoomId, why: Why) -> None:
        """Ends a room on every rank. One that does not read its messages is as good as lost, and logged."""
        for rank in self._ranks.values():
            try:
                rank.send(abort_room=rank_pb2.AbortRoom(room=room, failure=wire.failure(why)))
            except TandemError as error:
                log.error("room %d can't be aborted: %s", room, error)

    def failure_of(self, room: RoomId) -> Why | None:
        """Why a room failed on the first rank that said so; None if none did."""
        return self._failures.get(room)

    def peer_joined(self, life: WorkerLife, addresses: dict[RankId, str]) -> None:
        """Decode: a prefill worker is there."""
        for rank in self._ranks.values():
            address = peer_address(addresses, rank.rank, rank.rank.dp)
            if address:
                rank.send(peer_joined=rank_pb2.PeerJoined(peer=convert.life_to_proto(life), address=address))

    def peer_gone(self, life: WorkerLife) -> None:
        """A peer's life is over."""
        for rank in self._ranks.values():
            rank.send(peer_gone=rank_pb2.PeerGone(peer=convert.life_to_proto(life)))

    async def status(self) -> EngineStatus:
        """The state of every rank, added up. Raises TandemError(DEADLINE_EXCEEDED) if a rank does not answer."""
        return _merged(await self._poll(metrics=False))

    async def measured(self) -> Measured:
        """The same, and what each rank has measured."""
        answers = await self._poll(metrics=True)
        found = (reports.from_proto(rank, answer.metrics) for rank, answer in answers.items())
        return Measured(_merged(answers), tuple(found))

    async def rooms(self, limit: int) -> OpenRooms:
        """The open rooms of every rank, at most `limit` of each. Raises as `status` does."""
        answers = await self._ask(lambda poll: {"poll_rooms": rank_pb2.PollRooms(id=poll, limit=limit)})
        return open_rooms.merge(list(answers.values()))

    async def _poll(self, *, metrics: bool) -> dict[RankId, rank_pb2.RankStatus]:
        """What each rank says of itself now, in order of rank."""
        return await self._ask(lambda poll: {"poll_status": rank_pb2.PollStatus(id=poll, metrics=metrics)})

    async def _ask(self, question: Callable[[int], dict[str, Any]]) -> dict[RankId, Any]:
        """What every rank answers to a message with this number, in order of rank."""
        loop, poll = asyncio.get_running_loop(), next(self._poll_ids)
        ranks = [self._ranks[rank] for rank in sorted(self._ranks)]
        try:
            for rank in ranks:
                rank.polls[poll] = loop.create_future()
                rank.send(**question(poll))
            async with asyncio.timeout(STATUS_TIMEOUT_MS / 1000):
                return {rank.rank: await rank.polls[poll] for rank in ranks}
        except TimeoutError as error:
            raise TandemError(ErrorReason.DEADLINE_EXCEEDED, "an engine rank does not answer") from error
        finally:
            for rank in ranks:
                rank.polls.pop(poll, None)

    def rank_pids(self) -> Sequence[int]:
        """Processes of the ranks that have attached."""
        return [rank.pid for rank in self._ranks.values()]

    async def wait_failed(self) -> TandemError:
        """Returns when a rank was lost."""
        return await asyncio.shield(self._failed)

    def closing(self) -> None:
        """Ranks that go from now on are not missed."""
        self._closing = True

    async def close(self) -> None:
        """Lets the ranks go and stops listening. Idempotent."""
        self._closing = True
        await self._server.stop(grace_ms=100)
        self._directory.cleanup()

    async def Attach(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[rank_pb2.AttachRequest], context: Any
    ) -> None:
        """One rank, for its life."""
        first = await first_of(request_iterator, "Attach starts with RankHello")
        if first.WhichOneof("message") != "hello":
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "a rank starts with RankHello")
        rank = _Rank(first.hello)
        if rank.rank in self._ranks:
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"rank {rank.rank} is attached already")
        self._ranks[rank.rank] = rank
        log.info("rank %s attached (pid %d)", rank.rank, rank.pid)
        if len(self._ranks) == self._expected:
            self._all_here.set()
        writer = asyncio.ensure_future(self._write(rank, context))
        try:
            async for message in request_iterator:
                if self._ranks.get(rank.rank) is rank:
                    self._take(rank, message)
        finally:
            writer.cancel()
            self._lost(rank)

    async def _write(self, rank: _Rank, context: Any) -> None:
        while True:
            await context.write(await rank.outbox.get())

    def _take(self, rank: _Rank, message: rank_pb2.AttachRequest) -> None:
        match message.WhichOneof("message"):
            case "ticket_opened":
                future = rank.tickets.get(RoomId(message.ticket_opened.room))
                if future is not None and not future.done():
                    _settle(future, message.ticket_opened)
            case "held_pages":
                self.held_pages.apply(held_pages.from_proto(message.held_pages))
            case "room_ended":
                self._room_ended(rank, message.room_ended)
            case "status":
                rank.answered(message.status.poll_id, message.status)
            case "rooms":
                rooms = tuple(map(open_rooms.from_proto, message.rooms.rooms))
                rank.answered(message.rooms.poll_id, OpenRooms(rooms, message.rooms.total))

    def _room_ended(self, rank: _Rank, ended: rank_pb2.RoomEnded) -> None:
        room = RoomId(ended.room)
        if ended.HasField("trace"):
            self._on_room_traced(wire.trace_of(ended.trace, room, rank.rank))
        if ended.success or room in self._failures:
            return
        why = wire.why_of(ended.failure)
        self._failures[room] = why
        if len(self._failures) > ENDED_ROOMS:
            self._failures.popitem(last=False)
        self._on_room_failed(room, why)

    def _lost(self, rank: _Rank) -> None:
        error = TandemError(ErrorReason.ENGINE_FAILED, f"engine rank {rank.rank} (pid {rank.pid}) is gone")
        rank.lost(error)
        if self._ranks.get(rank.rank) is not rank:
            return  # it was released
        del self._ranks[rank.rank]
        if not self._closing:
            log.error("%s", error.message)
            if not self._failed.done():
                self._failed.set_result(error)


def peer_address(addresses: dict[RankId, str], rank: RankId, peer_dp: int) -> str:
    """Address of the peer's rank that pairs with ours; empty if it has none."""
    return addresses.get(RankId(dp=peer_dp, pp=rank.pp, tp=rank.tp), "")


def _ticket(job: Job, rank: RankId, timeout_ms: int) -> rank_pb2.OpenTicket:
    return rank_pb2.OpenTicket(
        room=job.room,
        nonce=job.nonce,
        peer=convert.life_to_proto(job.peer),
        peer_address=peer_address(job.peer_addresses, rank, job.peer_dp_rank),
        timeout_ms=timeout_ms,
        traceparent=job.traceparent,
        prompt_tokens=len(job.input_ids),
        request_id=job.request_id,
    )


def _first_refusal(tickets: list[asyncio.Future[None]]) -> TandemError | None:
    for ticket in tickets:
        if not ticket.done():
            return TandemError(ErrorReason.DEADLINE_EXCEEDED, "a rank did not open the room's ticket in time")
        if isinstance(error := ticket.exception(), TandemError):
            return error
    return None


def _merged(answers: Mapping[RankId, rank_pb2.RankStatus]) -> EngineStatus:
    return status.merge([status.from_proto(answer.status) for answer in answers.values()])


def _settle(future: asyncio.Future[None], opened: rank_pb2.TicketOpened) -> None:
    if opened.HasField("failure"):
        future.set_exception(_as_error(opened.failure))
    else:
        future.set_result(None)


def _as_error(failure: common_pb2.Failure) -> TandemError:
    why = wire.why_of(failure)
    return TandemError(why.reason, why.message)
