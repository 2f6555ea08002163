"""A gateway hears what others have of a worker, until it hears no more of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import grpc
import pytest

from tandem.core.ids import Role
from tandem.core.version import CURRENT, Feature
from tandem.gateway.routing.sessions import Leg, Session
from tandem.rpc import convert
from tandem.v1 import session_pb2
from tests.support.bootstrap.workers import worker

INFO = worker("d0", Role.DECODE, incarnation=1)


class Stub:
    """A worker that says three things, and dies when told."""

    def __init__(self, features: Feature = CURRENT.features) -> None:
        self.dies = asyncio.Event()
        self.version = replace(CURRENT, features=features)
        self.heard: asyncio.Queue[session_pb2.SessionRequest] = asyncio.Queue()

    def Session(self, requests: AsyncIterator[session_pb2.SessionRequest]) -> Stub:  # noqa: N802
        """As the generated stub."""
        self.hearing = asyncio.create_task(self._hear(requests))
        return self

    async def _hear(self, requests: AsyncIterator[session_pb2.SessionRequest]) -> None:
        async for one in requests:
            self.heard.put_nowait(one)

    def cancel(self) -> None:
        """As a call."""

    async def __aiter__(self) -> AsyncIterator[session_pb2.SessionResponse]:
        yield session_pb2.SessionResponse(
            welcome=session_pb2.SessionWelcome(
                version=convert.protocol_to_proto(self.version), worker=convert.life_to_proto(INFO.life)
            )
        )
        for pages in ([3, 4], None, [0, 0]):
            others = None if pages is None else session_pb2.OtherRooms(pages=pages, put_aside=any(pages))
            yield session_pb2.SessionResponse(batch=session_pb2.StepBatch(others=others))
        await self.dies.wait()
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing)


class NoChannel:
    """Makes stubs that nobody uses."""

    def __getattr__(self, kind: str) -> Any:
        return lambda *_, **__: None


def session_with(stub: Stub) -> Session:
    """A gateway's Session with a worker."""
    channel: Any = NoChannel()
    rng: Any = None
    session = Session(INFO, channel, gateway_id="g", max_outbox=4, rng=rng)
    session._stub = stub
    return session


async def test_what_others_have_is_passed_on_and_forgotten_with_the_stream() -> None:
    stub = Stub()
    session = session_with(stub)
    heard: asyncio.Queue[tuple[Sequence[int], bool]] = asyncio.Queue()
    session.on_others_changed(lambda pages, taken: heard.put_nowait((tuple(pages), taken)))
    once = asyncio.create_task(session._once())
    assert [await asyncio.wait_for(heard.get(), 10) for _ in range(2)] == [((3, 4), True), ((0, 0), False)]
    stub.dies.set()
    await once
    session.leave()
    assert await asyncio.wait_for(heard.get(), 10) == ((), False)


@pytest.mark.parametrize("knows", [True, False], ids=["a worker that knows it", "an older one"])
async def test_a_worker_is_asked_to_be_put_aside_on_each_stream_where_it_knows_that(knows: bool) -> None:
    stub = Stub(CURRENT.features if knows else CURRENT.features & ~Feature.PUT_ASIDE)
    session = session_with(stub)
    up = asyncio.Event()
    session.on_up_changed(up.set)
    session.put_aside(True)

    async def said() -> list[bool]:
        """What the worker hears of it until a room is sent."""
        await asyncio.wait_for(up.wait(), 10)
        session.submit(session_pb2.Submit(room=1), Leg(lambda _: None, lambda _: None))
        found = []
        while not (one := await asyncio.wait_for(stub.heard.get(), 10)).HasField("submit"):
            found += [one.put_aside.wanted] * one.HasField("put_aside")
        return found

    for first in (True, False):
        once = asyncio.create_task(session._once())
        assert await said() == [True] * (knows and first)
        session.put_aside(first)  # for the second time, and nothing follows
        session.put_aside(False)
        assert await said() == [False] * (knows and first)
        stub.dies.set()
        await once
        session.leave()
        up.clear()
        stub.dies.clear()
