"""Asks another process of this gateway, and answers one: the two ends of SiblingService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import orjson

from tandem.gateway.api.responses_store import Kept, ResponseStore
from tandem.gateway.calls import Message
from tandem.gateway.siblings.place import Place
from tandem.gateway.text.tools import ToolCall
from tandem.rpc.client import open_channel
from tandem.rpc.telemetry import metadata
from tandem.v1 import siblings_pb2, siblings_pb2_grpc

SERVICE_NAME: Final = siblings_pb2.DESCRIPTOR.services_by_name["SiblingService"].full_name
TIMEOUT_S: Final = 2.0
"""A process that has not answered by then is left out, or said not to answer."""
PIECE_BYTES: Final = 256 << 10

_Context = grpc.aio.ServicerContext[Any, Any]


class Siblings:
    """The other processes, each asked over a connection of its own: one that died and came again is found at once."""

    def __init__(self, place: Place) -> None:
        self.place = place

    async def metrics(self, index: int) -> bytes:
        """What a process tells Prometheus. Raises AioRpcError."""
        async with open_channel(self.place.address(index)) as channel:
            stub: Any = siblings_pb2_grpc.SiblingServiceStub(channel)
            return await _whole(stub.ReadMetrics(siblings_pb2.ReadMetricsRequest(), timeout=TIMEOUT_S))

    async def board(self, index: int) -> bytes:
        """What a process has for the dashboard. Raises AioRpcError."""
        async with open_channel(self.place.address(index)) as channel:
            stub: Any = siblings_pb2_grpc.SiblingServiceStub(channel)
            return await _whole(stub.ReadBoard(siblings_pb2.ReadBoardRequest(), timeout=TIMEOUT_S))

    async def kept(self, index: int, response_id: str, owner: str) -> Kept:
        """An answer that a process keeps. Raises AioRpcError."""
        async with open_channel(self.place.address(index)) as channel:
            stub: Any = siblings_pb2_grpc.SiblingServiceStub(channel)
            asked = siblings_pb2.ReadKeptRequest(response_id=response_id, owner=owner)
            return _read(response_id, owner, await _whole(stub.ReadKept(asked, timeout=TIMEOUT_S)))

    async def forget(self, index: int, response_id: str, owner: str) -> None:
        """Makes a process forget an answer. Raises AioRpcError."""
        async with open_channel(self.place.address(index)) as channel:
            stub: Any = siblings_pb2_grpc.SiblingServiceStub(channel)
            asked = siblings_pb2.ForgetKeptRequest(response_id=response_id, owner=owner)
            await stub.ForgetKept(asked, timeout=TIMEOUT_S, metadata=metadata())


class SiblingServicer(siblings_pb2_grpc.SiblingServiceServicer):
    """What this process tells the others."""

    def __init__(self, render: Callable[[], bytes], board: Callable[[], bytes], store: ResponseStore) -> None:
        """render: this process's metrics, labelled. board: what it has for the dashboard."""
        self._render = render
        self._board = board
        self._store = store

    async def ReadMetrics(  # noqa: N802 - the name is the contract's
        self, request: siblings_pb2.ReadMetricsRequest, context: _Context
    ) -> AsyncIterator[siblings_pb2.ReadMetricsResponse]:
        """The metrics of this process."""
        del request, context
        for piece in _pieces(self._render()):
            yield siblings_pb2.ReadMetricsResponse(piece=piece)

    async def ReadBoard(  # noqa: N802
        self, request: siblings_pb2.ReadBoardRequest, context: _Context
    ) -> AsyncIterator[siblings_pb2.ReadBoardResponse]:
        """What this process alone knows for the dashboard."""
        del request, context
        for piece in _pieces(self._board()):
            yield siblings_pb2.ReadBoardResponse(piece=piece)

    async def ReadKept(  # noqa: N802
        self, request: siblings_pb2.ReadKeptRequest, context: _Context
    ) -> AsyncIterator[siblings_pb2.ReadKeptResponse]:
        """An answer that is kept here."""
        del context
        for piece in _pieces(_written(self._store.get(request.response_id, request.owner))):
            yield siblings_pb2.ReadKeptResponse(piece=piece)

    async def ForgetKept(  # noqa: N802
        self, request: siblings_pb2.ForgetKeptRequest, context: _Context
    ) -> siblings_pb2.ForgetKeptResponse:
        """Forgets an answer that is kept here."""
        del context
        self._store.delete(request.response_id, request.owner)
        return siblings_pb2.ForgetKeptResponse()


Ask = Callable[[int], Awaitable[bytes]]
"""Asks a process for its metrics."""


async def _whole(call: Any) -> bytes:
    return b"".join([one.piece async for one in call])


def _pieces(whole: bytes) -> list[bytes]:
    return [whole[start : start + PIECE_BYTES] for start in range(0, len(whole), PIECE_BYTES)]


def _written(kept: Kept) -> bytes:
    return orjson.dumps({"document": kept.document.decode(), "messages": kept.messages})


def _read(response_id: str, owner: str, written: bytes) -> Kept:
    found = orjson.loads(written)
    return Kept(response_id, found["document"].encode(), tuple(map(_message, found["messages"])), owner)


def _message(found: dict[str, Any]) -> Message:
    calls = tuple(ToolCall(**call) for call in found.pop("calls"))
    return Message(**found, calls=calls)
