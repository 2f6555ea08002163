"""GrpcServer and its interceptor on a real loopback connection: all four shapes, states, limits."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import Credentials
from tandem.rpc.errors import from_rpc_error
from tandem.rpc.metrics import Metrics
from tandem.rpc.options import MAX_MESSAGE_BYTES, RECEIVE_SLACK_BYTES
from tandem.rpc.server import GrpcServer, ServerState
from tandem.rpc.telemetry import current_traceparent

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SHAPES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream", "written")


def _act(request: bytes) -> bytes:
    if request == b"known":
        raise TandemError(ErrorReason.UNKNOWN_ROOM, "room 5 is gone", field="room")
    if request == b"bug":
        raise ZeroDivisionError("secret text")
    if request == b"trace":
        return current_traceparent.get().encode()
    return request


class Handlers:
    """Echoes, or fails as it is told. Bytes in, bytes out."""

    async def unary_unary(self, request, context):
        if request == b"abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "mine")
        if request == b"wait":
            await asyncio.Event().wait()
        return _act(request)

    async def unary_stream(self, request, context):
        yield b"first"
        yield _act(request)

    async def stream_unary(self, requests, context):
        return _act(b"".join([request async for request in requests]))

    async def stream_stream(self, requests, context):
        async for request in requests:
            yield _act(request)

    async def written(self, request, context):
        await context.write(b"first")
        await context.write(_act(request))


def _add(handlers: Handlers, server: grpc.aio.Server) -> None:
    kinds = {
        "unary_unary": grpc.unary_unary_rpc_method_handler,
        "unary_stream": grpc.unary_stream_rpc_method_handler,
        "stream_unary": grpc.stream_unary_rpc_method_handler,
        "stream_stream": grpc.stream_stream_rpc_method_handler,
        "written": grpc.unary_stream_rpc_method_handler,
    }
    methods = {name: kinds[name](getattr(handlers, name)) for name in SHAPES}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", methods),))


@pytest.fixture
async def served():
    metrics = Metrics()
    server = GrpcServer(on_call=metrics.count_rpc)
    server.add(_add, Handlers(), "test.Echo")
    address = server.bind("127.0.0.1:0")
    await server.start()
    async with open_channel(address) as channel:
        yield server, channel, metrics
    await server.stop(0)


async def send(channel: grpc.aio.Channel, shape: str, request: bytes) -> bytes:
    """The last answer to a request."""
    path, metadata = f"/test.Echo/{shape}", (("traceparent", TRACEPARENT),)
    if shape == "unary_unary":
        return await channel.unary_unary(path)(request, metadata=metadata, timeout=20)
    if shape == "stream_unary":
        return await channel.stream_unary(path)(iter([request]), metadata=metadata, timeout=20)
    if shape == "stream_stream":
        call = channel.stream_stream(path)(iter([request]), metadata=metadata, timeout=20)
    else:
        call = channel.unary_stream(path)(request, metadata=metadata, timeout=20)
    return [answer async for answer in call][-1]


@pytest.mark.parametrize("shape", SHAPES)
async def test_every_shape_answers_fails_and_is_counted(served, caplog, shape):
    _, channel, metrics = served
    assert await send(channel, shape, b"hello") == b"hello"
    assert await send(channel, shape, b"trace") == TRACEPARENT.encode()

    with pytest.raises(grpc.aio.AioRpcError) as known:
        await send(channel, shape, b"known")
    assert known.value.code() is grpc.StatusCode.NOT_FOUND
    error = from_rpc_error(known.value)
    assert (error.reason, error.message, error.field) == (ErrorReason.UNKNOWN_ROOM, "room 5 is gone", "room")

    with pytest.raises(grpc.aio.AioRpcError) as bug:
        await send(channel, shape, b"bug")
    assert from_rpc_error(bug.value).reason is ErrorReason.INTERNAL
    assert "secret text" not in str(bug.value)
    assert "ZeroDivisionError: secret text" in caplog.text

    counted = metrics.render().decode()
    for code, count in (("OK", 2), ("NOT_FOUND", 1), ("INTERNAL", 1)):
        assert f'tandem_rpc_calls_total{{code="{code}",method="/test.Echo/{shape}"}} {count}.0' in counted


async def test_aborts_and_cancels_pass(served, caplog):
    _, channel, _ = served
    with pytest.raises(grpc.aio.AioRpcError) as aborted:
        await send(channel, "unary_unary", b"abort")
    assert (aborted.value.code(), aborted.value.details()) == (grpc.StatusCode.DATA_LOSS, "mine")
    call = channel.unary_unary("/test.Echo/unary_unary")(b"wait")
    await send(channel, "unary_unary", b"x")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert "failed" not in caplog.text


async def test_unknown_methods_are_not_supported(served):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served[1].unary_unary("/test.Echo/nothing")(b"")
    assert from_rpc_error(caught.value).reason is ErrorReason.NOT_SUPPORTED


async def test_messages_have_a_limit(served):
    _, channel, _ = served
    longest = bytes(MAX_MESSAGE_BYTES)
    assert await send(channel, "unary_unary", longest) == longest
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await send(channel, "unary_unary", bytes(MAX_MESSAGE_BYTES + RECEIVE_SLACK_BYTES + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_health_follows_ready_and_drain(served):
    server, channel, _ = served
    stub = health_pb2_grpc.HealthStub(channel)

    async def health() -> list[int]:
        names = ("", "test.Echo")
        return [(await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names]

    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert await health() == [not_serving] * 2
    await server.set_ready(True)
    assert await health() == [serving] * 2
    await server.drain()
    assert await health() == [not_serving] * 2
    await server.set_ready(True)
    assert await health() == [not_serving] * 2
    assert await send(channel, "unary_unary", b"still served") == b"still served"
    await server.stop(0)
    await server.stop(0)
    assert server.state is ServerState.STOPPED
    with pytest.raises(TandemError):
        await server.start()


async def test_unix_sockets(tmp_path):
    server = GrpcServer()
    server.add(_add, Handlers(), "test.Echo")
    address = server.bind(f"unix:{tmp_path}/s")
    await server.start()
    async with open_channel(address) as channel:
        assert await send(channel, "unary_unary", b"hello") == b"hello"
    await server.stop(0)


async def test_where_a_server_may_listen():
    server = GrpcServer()
    with pytest.raises(TandemError, match="not on loopback"):
        server.bind("0.0.0.0:0")
    taken = server.bind("127.0.0.1:0")
    with pytest.raises(TandemError, match="cannot bind"):
        GrpcServer().bind(taken)
    assert "127.0.0.1:" in GrpcServer(credentials=Credentials(allow_insecure=True)).bind("127.0.0.1:0")
    await server.stop(0)
