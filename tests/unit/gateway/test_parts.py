"""A Submit as messages: cut by the gateway, put together by the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role, RoomId
from tandem.core.version import CURRENT, Feature, Protocol
from tandem.engine.worker.submit import SubmitCollector
from tandem.gateway.routing.parts import SubmitParts
from tandem.gateway.routing.sessions import Leg, Session
from tandem.rpc import convert
from tandem.rpc.continued import MAX_PARTS
from tandem.rpc.options import MAX_MESSAGE_BYTES
from tandem.v1 import session_pb2
from tests.support.bootstrap.workers import worker

LONG = [1 << 21] * 700_000
"""Ids of 4 bytes each: three messages."""


def _submit(ids: list[int], room: int = 7) -> session_pb2.Submit:
    sampling = session_pb2.Sampling(max_new_tokens=4, stop=["end"])
    return session_pb2.Submit(request_id="r", room=room, nonce=b"n" * 16, model="m", input_ids=ids, sampling=sampling)


@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 300), max_size=120), st.integers(60, 200))
def test_whatever_is_cut_is_the_same_when_joined(ids: list[int], part_bytes: int) -> None:
    submit = _submit(ids)
    parts = list(SubmitParts(submit, part_bytes))
    assert len(parts) == len(SubmitParts(submit, part_bytes))
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert all(part.ByteSize() <= part_bytes + 32 for part in parts)

    def refuse(room: RoomId, error: TandemError) -> None:
        raise error

    collector = SubmitCollector(len(ids), refuse)
    *early, whole = [collector.add(session_pb2.Submit.FromString(part.SerializeToString())) for part in parts]
    assert not any(early)
    assert whole is not None
    whole.ClearField("part")
    whole.ClearField("more")
    assert whole == submit


def test_parts_fit_a_message() -> None:
    parts = list(SubmitParts(_submit(LONG)))
    assert len(parts) == 3
    assert all(session_pb2.SessionRequest(submit=part).ByteSize() <= MAX_MESSAGE_BYTES for part in parts)


@pytest.mark.parametrize(
    "submit",
    [_submit([1 << 30] * 20 * (MAX_PARTS + 1)), session_pb2.Submit(room=7, input_ids=[1], traceparent="t" * 101)],
    ids=["ids", "options"],
)
def test_what_needs_too_much_is_refused(submit: session_pb2.Submit) -> None:
    with pytest.raises(TandemError) as caught:
        SubmitParts(submit, part_bytes=100)
    assert caught.value.reason is ErrorReason.CONTEXT_TOO_LONG


class Stream:
    """The stub of a worker: the test takes what the gateway sends, one message at a time."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self.sent: AsyncIterator[session_pb2.SessionRequest]

    def Session(self, messages: AsyncIterator[session_pb2.SessionRequest]) -> Stream:  # noqa: N802
        """As the generated stub."""
        self.sent = messages
        return self

    def cancel(self) -> None:
        """As a call."""

    async def __aiter__(self) -> AsyncIterator[session_pb2.SessionResponse]:
        life = worker("d0", Role.DECODE, incarnation=1).life
        welcome = session_pb2.SessionWelcome(
            version=convert.protocol_to_proto(self._protocol), worker=convert.life_to_proto(life)
        )
        yield session_pb2.SessionResponse(welcome=welcome)
        await asyncio.Event().wait()

    async def next(self) -> session_pb2.SessionRequest:
        """The next message."""
        return await asyncio.wait_for(anext(self.sent), 10)


async def _open(stream: Stream) -> tuple[Session, asyncio.Task[None]]:
    rng: Any = None
    channel: Any = _NoChannel()
    info = worker("d0", Role.DECODE, incarnation=1)
    session = Session(info, channel, gateway_id="g", max_outbox=4, rng=rng)
    session._stub = stream
    up = asyncio.Event()
    session.on_up_changed(up.set)
    running = asyncio.create_task(session.run())
    await asyncio.wait_for(up.wait(), 10)
    assert (await stream.next()).WhichOneof("message") == "hello"
    return session, running


class _NoChannel:
    def __getattr__(self, kind: str) -> Any:
        return lambda *_, **__: None


def _leg() -> Leg:
    return Leg(lambda _: None, lambda _: None)


async def test_a_long_submit_is_one_entry_and_nothing_comes_between_its_parts() -> None:
    stream = Stream(CURRENT)
    session, running = await _open(stream)
    session.submit(_submit(LONG), _leg())
    session.submit(_submit([1], room=8), _leg())
    seen = [(await stream.next()).submit for _ in range(4)]
    assert [(one.room, one.part, one.more) for one in seen] == [
        (7, 0, True),
        (7, 1, True),
        (7, 2, False),
        (8, 0, False),
    ]
    running.cancel()


async def test_a_cancel_in_the_middle_ends_the_parts() -> None:
    stream = Stream(CURRENT)
    session, running = await _open(stream)
    session.submit(_submit(LONG), _leg())
    first = await stream.next()
    assert (first.submit.part, first.submit.more) == (0, True)
    session.cancel(RoomId(7), TandemError(ErrorReason.CANCELLED, "the client has gone"))
    assert (await stream.next()).cancel.room == 7
    running.cancel()


async def test_a_worker_that_takes_no_parts_gets_none() -> None:
    session, running = await _open(Stream(Protocol(1, 0, Feature.CHUNK_CHECKSUM)))
    with pytest.raises(TandemError) as caught:
        session.submit(_submit(LONG), _leg())
    assert caught.value.reason is ErrorReason.NOT_SUPPORTED
    assert session.in_flight == 0
    running.cancel()
