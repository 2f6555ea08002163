"""Control messages: what is packed is what is read, and what can't be read ends the connection clearly."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import fields

import numpy as np
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma.verbs import control
from tandem.rdma.verbs.control import ControlConnection, Message, RailAddress

GRANT, CHUNK = GrantId(2**63 - 1), ChunkIndex(7)
U64S = np.array([1, 2**64 - 1], np.uint64)
MESSAGES: list[Message] = [
    control.Side(
        (RailAddress(bytes(range(16)), 3, 5), RailAddress(bytes(16), 0, 1)),
        np.array([[4096, 1], [8192, 2**40]], np.uint64),
        np.array([[1, 2**32 - 1], [3, 4]], np.uint32),
    ),
    control.Side((RailAddress(bytes(16), 0, 1),)),
    control.QueuePairReady(15, 2**32 - 1, 2**24 - 1, 2**24 - 1),
    control.RailReady(0, 1),
    control.RailDown(15, 2**32 - 1),
    control.GrantOpened(GRANT, U64S, U64S),
    control.GrantOpened(GRANT, U64S[:0], U64S[:0]),
    control.GrantRevoked(GRANT),
    control.GrantUnknown(GRANT),
    control.GrantAsked(GRANT),
    control.GrantQuiet(GRANT),
    control.WriteOpened(GRANT, CHUNK, 2**32 - 1, 4 << 20, 7, U64S, np.array([3, 4], np.uint64)),
    control.WriteEnded(GRANT, CHUNK, 1, True, ErrorReason.GRANT_CLOSED),
    control.WriteEnded(GRANT, CHUNK, 1, False, None),
    control.Credit(1, 2, 3),
]


def plain(message: Message) -> list[object]:
    values = [getattr(message, field.name) for field in fields(message)]  # type: ignore[arg-type]
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


class Ends:
    """Two ends of a connection, and what the second one hears."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.raw = ours
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self.end: asyncio.Future[TandemError] = asyncio.get_running_loop().create_future()
        self.reader = ControlConnection(theirs, self.heard.put_nowait, self.end.set_result)

    async def failure(self) -> TandemError:
        return await asyncio.wait_for(self.end, 5)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    made = Ends()
    yield made
    await made.reader.close()
    made.raw.close()


async def test_every_message_arrives_as_it_was(ends: Ends) -> None:
    writer = ControlConnection(ends.raw, lambda _: None, lambda _: None)
    for message in MESSAGES:
        writer.send(message)
    for message in MESSAGES:
        heard = await asyncio.wait_for(ends.heard.get(), 5)
        assert type(heard) is type(message)
        assert plain(heard) == plain(message)
    await writer.close()
    assert (await ends.failure()).reason is ErrorReason.LINK_LOST


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(bytes([99, 0, 0, 0]) + (0).to_bytes(4, "little"), id="an unknown kind"),
        pytest.param(bytes(4) + (2**32 - 1).to_bytes(4, "little"), id="too long"),
        pytest.param(bytes(4) + (3).to_bytes(4, "little") + b"abc", id="a cut side"),
        pytest.param(bytes([4, 0, 0, 0]) + (9).to_bytes(4, "little") + bytes(9), id="a grant of no whole number"),
        pytest.param(bytes([2, 0, 0, 0]) + (1).to_bytes(4, "little") + b"x", id="a cut rail"),
        pytest.param(bytes([8, 0, 0, 0]) + (48).to_bytes(4, "little") + bytes(48), id="a write in pieces of no byte"),
    ],
)
async def test_what_cannot_be_read_is_a_violation(ends: Ends, frame: bytes) -> None:
    ends.raw.sendall(frame)
    assert (await ends.failure()).reason is ErrorReason.PROTOCOL_VIOLATION


async def test_what_a_handler_refuses_ends_the_connection() -> None:
    ours, theirs = socket.socketpair()
    end: asyncio.Future[TandemError] = asyncio.get_running_loop().create_future()

    def refuse(message: Message) -> None:
        raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"no {type(message).__name__}")

    reader = ControlConnection(theirs, refuse, end.set_result)
    writer = ControlConnection(ours, lambda _: None, lambda _: None)
    writer.send(control.GrantAsked(GRANT))
    assert "no GrantAsked" in (await asyncio.wait_for(end, 5)).message
    await reader.close()
    await writer.close()
