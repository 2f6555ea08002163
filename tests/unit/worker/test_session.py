"""A Session that ends takes its rooms with it, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from tandem.core.errors import CATALOGUE
from tandem.core.ids import Incarnation, RankId, Role, RoomId, WorkerId, WorkerLife
from tandem.core.room.events import Why
from tandem.core.version import CURRENT
from tandem.engine.port import Job, Sink
from tandem.engine.worker.leg_trace import LegTraces
from tandem.engine.worker.page_shares import PageShares
from tandem.engine.worker.session import Session
from tandem.rpc import convert
from tandem.rpc.tracing import names
from tandem.rpc.tracing.provider import Tracing
from tandem.rpc.tracing.settings import TraceSettings
from tandem.v1 import session_pb2

ROOM = 7


class Host:
    """A prefill worker whose engine takes every room and ends none by itself; see `SessionHost`."""

    role = Role.PREFILL
    life = WorkerLife(WorkerId("p0"), Incarnation(1))
    facts: Any = SimpleNamespace(context_tokens=100, model="m", layout=SimpleNamespace(page_size=16), ranks=())
    refusing = False

    def __init__(self) -> None:
        self.engine: Any = self
        self.tracing = Tracing("prefill", "p0", TraceSettings())
        self.traces = LegTraces(self.tracing, self.role, self.life.worker_id)
        self.shares = PageShares(self.facts)
        self.knows_room = True
        self.submitted = asyncio.Event()
        self.aborted = asyncio.Event()
        self.why: Why | None = None

    async def submit(self, job: Job, sink: Sink) -> None:
        """The engine's."""
        self.submitted.set()

    async def abort(self, room: RoomId, why: Why) -> bool:
        """The engine's."""
        assert room == ROOM
        self.why = why
        self.aborted.set()
        return self.knows_room

    def take_room(self) -> None:
        """Any number."""

    def room_ended(self) -> None:
        """Never."""


class Stream:
    """One gateway's end: says Hello, submits a room, and hangs up when told."""

    def __init__(self, *, wants_aside: bool = False) -> None:
        self.wants_aside = wants_aside
        self.hang_up = asyncio.Event()
        self.wrote: asyncio.Queue[session_pb2.SessionResponse] = asyncio.Queue()
        self.last = session_pb2.OtherRooms()

    async def requests(self) -> AsyncIterator[session_pb2.SessionRequest]:
        """What the worker reads."""
        version = convert.protocol_to_proto(CURRENT)
        yield session_pb2.SessionRequest(hello=session_pb2.SessionHello(version=version, gateway_id="g"))
        peer = convert.life_to_proto(WorkerLife(WorkerId("d0"), Incarnation(1)))
        sampling = session_pb2.Sampling(max_new_tokens=1)
        submit = session_pb2.Submit(
            request_id="r", room=ROOM, nonce=bytes(16), peer=peer, timeout_ms=60_000, model="m", input_ids=[1]
        )
        submit.sampling.CopyFrom(sampling)
        yield session_pb2.SessionRequest(submit=submit)
        if self.wants_aside:
            yield session_pb2.SessionRequest(put_aside=session_pb2.PutAside(wanted=True))
        await self.hang_up.wait()

    async def write(self, message: session_pb2.SessionResponse) -> None:
        """What the worker writes."""
        self.wrote.put_nowait(message)

    async def others(self) -> list[int]:
        """What the next message that tells of other Sessions says."""
        while not (message := await asyncio.wait_for(self.wrote.get(), 5)).batch.HasField("others"):
            pass
        self.last = message.batch.others
        return list(self.last.pages)


@pytest.mark.parametrize("steps", range(8))
async def test_a_call_that_is_cancelled_while_its_stream_ends_aborts_its_rooms(steps: int) -> None:
    """gRPC does both when a client dies, in any order; steps: turns of the loop between them."""
    host, stream = Host(), Stream()
    call = asyncio.create_task(Session(host).run(stream.requests(), stream.write, asyncio.Event()))
    await asyncio.wait_for(host.submitted.wait(), 5)
    stream.hang_up.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait_for(host.aborted.wait(), 5)
    await asyncio.wait({call})
    # Its peer may tell a gateway that lives: that has to try again, as nobody has cancelled anything.
    assert host.why is not None
    assert CATALOGUE[host.why.reason].retryable


async def test_a_leg_that_nobody_knows_any_more_ends_with_its_session() -> None:
    host, stream = Host(), Stream()
    host.knows_room = False
    stream.hang_up.set()
    await Session(host).run(stream.requests(), stream.write, asyncio.Event())
    found = host.tracing.ring.request("r")
    assert found is not None
    leg, ticket = found[1].spans
    assert leg.end_time is not None
    assert ticket.end_time is not None
    assert (leg.attributes or {})[names.ERROR_TYPE] == "PEER_LOST"
    assert not host.traces._open


class Decoder(Host):
    """The same, where sequences are decoded."""

    role = Role.DECODE

    async def peer_addresses(self, _: WorkerLife) -> dict[RankId, str]:
        """Of nobody."""
        return {}


class Silent(Stream):
    """A gateway that asks for nothing."""

    async def requests(self) -> AsyncIterator[session_pb2.SessionRequest]:
        """Hello, and no more."""
        async for request in super().requests():
            if request.HasField("hello"):
                yield request


async def test_each_session_hears_what_is_kept_for_rooms_of_others() -> None:
    host, first, second, third = Decoder(), Stream(), Silent(), Silent()
    async with asyncio.TaskGroup() as sessions:
        sessions.create_task(Session(host).run(second.requests(), second.write, asyncio.Event()))
        asked = sessions.create_task(Session(host).run(first.requests(), first.write, asyncio.Event()))
        assert await second.others() == [1]
        sessions.create_task(Session(host).run(third.requests(), third.write, asyncio.Event()))
        assert await third.others() == [1], "one that comes later is told as well"
        first.hang_up.set()
        await asked
        assert (await second.others(), await third.others()) == ([0], [0])
        for stream in (second, third):
            stream.hang_up.set()
    told = [first.wrote.get_nowait() for _ in range(first.wrote.qsize())]
    assert not any(message.batch.HasField("others") for message in told), "its own are not others'"


async def test_others_are_told_for_whom_the_worker_is_put_aside_until_that_session_ends() -> None:
    host, first, second = Host(), Stream(wants_aside=True), Stream()

    async def put_aside() -> bool:
        await second.others()
        return second.last.put_aside

    async with asyncio.TaskGroup() as sessions:
        asked = sessions.create_task(Session(host).run(first.requests(), first.write, asyncio.Event()))
        await asyncio.wait_for(host.submitted.wait(), 5)
        sessions.create_task(Session(host).run(second.requests(), second.write, asyncio.Event()))
        assert await put_aside()
        first.hang_up.set()
        await asked
        assert not await put_aside()
        second.hang_up.set()
    told = [first.wrote.get_nowait() for _ in range(first.wrote.qsize())]
    assert not any(message.batch.others.put_aside for message in told)
