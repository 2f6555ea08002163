"""A gateway hears what others have of a worker, until it hears no more of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from tandem.core.ids import Role
from tandem.core.version import CURRENT
from tandem.gateway.routing.sessions import Session
from tandem.rpc import convert
from tandem.v1 import session_pb2
from tests.support.bootstrap.workers import worker

INFO = worker("d0", Role.DECODE, incarnation=1)


class Stub:
    """A worker that says three things, and dies when told."""

    def __init__(self) -> None:
        self.dies = asyncio.Event()

    def Session(self, _: AsyncIterator[session_pb2.SessionRequest]) -> Stub:  # noqa: N802
        """As the generated stub."""
        return self

    def cancel(self) -> None:
        """As a call."""

    async def __aiter__(self) -> AsyncIterator[session_pb2.SessionResponse]:
        yield session_pb2.SessionResponse(
            welcome=session_pb2.SessionWelcome(
                version=convert.protocol_to_proto(CURRENT), worker=convert.life_to_proto(INFO.life)
            )
        )
        for pages in ([3, 4], None, [0, 0]):
            others = None if pages is None else session_pb2.OtherRooms(pages=pages)
            yield session_pb2.SessionResponse(batch=session_pb2.StepBatch(others=others))
        await self.dies.wait()
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing)


class NoChannel:
    """Makes stubs that nobody uses."""

    def __getattr__(self, kind: str) -> Any:
        return lambda *_, **__: None


async def test_what_others_have_is_passed_on_and_forgotten_with_the_stream() -> None:
    channel: Any = NoChannel()
    rng: Any = None
    session = Session(INFO, channel, gateway_id="g", max_outbox=4, rng=rng)
    session._stub = stub = Stub()
    heard: asyncio.Queue[Sequence[int]] = asyncio.Queue()
    session.on_others_changed(heard.put_nowait)
    once = asyncio.create_task(session._once())
    assert [list(await asyncio.wait_for(heard.get(), 10)) for _ in range(2)] == [[3, 4], [0, 0]]
    stub.dies.set()
    await once
    session.leave()
    assert await asyncio.wait_for(heard.get(), 10) == ()
