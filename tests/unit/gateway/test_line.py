"""Pieces of a stream on their short way: from the Session's loop to the client's connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.mailbox import Mailbox, News
from tandem.gateway.web.generation import unless_gone
from tandem.gateway.web.line import Line, LineProtocol, line_of
from tandem.rpc.metrics import Metrics
from tandem.rpc.metrics_server import HttpServer
from tandem.rpc.tasks import contained
from tandem.v1 import session_pb2


def token(number: int) -> session_pb2.Delta:
    """News of one token."""
    return session_pb2.Delta(room=1, token_ids=[number])


async def test_news_go_over_at_once_only_while_the_reader_waits_and_nothing_else_does() -> None:
    mailbox, taken = Mailbox(100), list[News]()
    takes = True

    def take(news: News) -> bool:
        if takes:
            taken.append(news)
        return takes

    mailbox.hand_over_at_once(take)
    mailbox.put(0, token(1))
    assert not taken, "nobody waited for it"
    assert [one.delta.token_ids[0] for one in await mailbox.take()] == [1]
    reading = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.put(0, token(2))
    assert [one.delta.token_ids[0] for one in taken] == [2]
    takes = False
    mailbox.put(0, token(3))
    takes = True
    mailbox.put(0, token(4))
    assert [one.delta.token_ids[0] for one in await reading] == [3, 4]
    assert len(taken) == 1, "4 came after 3, which waited"


async def test_a_crash_in_the_short_way_ends_only_that_answer(caplog: pytest.LogCaptureFixture) -> None:
    def crash(news: News) -> bool:
        raise ValueError(news.index)

    seen: list[Exception] = []

    def note(error: Exception) -> bool:
        seen.append(error)
        return True

    with caplog.at_level(logging.ERROR):
        assert contained(crash, note)(News(7, token(1)))
    assert [str(error) for error in seen] == ["7"]
    assert "crashed" in caplog.text


def test_a_line_of_no_response_is_closed() -> None:
    assert not Line().open
    assert not line_of({"type": "http"}).open


@asynccontextmanager
async def connected(app: object) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client of a server with lines."""
    config = uvicorn.Config(app, http=LineProtocol, ws="none", lifespan="off", log_config=None, port=0)  # type: ignore[arg-type]
    server = HttpServer(config)
    listener = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    (one,) = listener.sockets
    socket = one.dup()
    listener.close()
    serving = asyncio.create_task(server.serve(sockets=[socket]))
    reader, writer = await asyncio.open_connection(*socket.getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await serving


async def served(app: object, request: bytes) -> bytes:
    """What a server with lines answers to one request."""
    async with connected(app) as (reader, writer):
        writer.write(request)
        return await reader.read()


def response(*pieces: bytes, length: int | None = None) -> object:
    """An application that writes pieces through the line where that is open, else through ASGI."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        line = line_of(scope)
        assert not line.open, "nothing has begun"
        headers = [] if length is None else [(b"content-length", str(length).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces:
            if line.open:
                line.write(piece)
            else:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        assert not line.open, "it is over"

    return app


HEAD = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def test_pieces_are_chunks_and_an_empty_one_is_none() -> None:
    answer = await served(response(b"one", b"", b"two" * 6), HEAD)
    assert answer.partition(b"\r\n\r\n")[2] == b"3\r\none\r\n12\r\n" + b"two" * 6 + b"\r\n0\r\n\r\n"


async def test_a_response_of_known_length_is_not_cut_into_chunks() -> None:
    answer = await served(response(b"one", b"two", length=6), HEAD)
    assert answer.partition(b"\r\n\r\n")[2] == b"onetwo"


async def test_a_line_tells_once_that_the_client_has_gone_and_later_at_once() -> None:
    began, gone, late = asyncio.Event(), asyncio.Event(), list[str]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        line = line_of(scope)
        line.when_gone(gone.set)
        began.set()
        await gone.wait()
        line.when_gone(None)
        line.when_gone(lambda: late.append("gone"))

    async with connected(app) as (_, writer):
        writer.write(HEAD)
        await began.wait()
        assert not gone.is_set()
        writer.close()
        try:
            await asyncio.wait_for(gone.wait(), 20)
        finally:
            gone.set()
    assert late == ["gone"]


async def test_a_client_that_goes_after_its_response_is_whole_is_not_missed() -> None:
    gone = list[str]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        line_of(scope).when_gone(lambda: gone.append("gone"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"all", "more_body": False})

    async with connected(app) as (reader, writer):
        writer.write(HEAD)
        assert (await reader.read()).endswith(b"3\r\nall\r\n0\r\n\r\n")
    assert not gone


async def test_work_ends_with_its_client_and_not_for_its_own_timeouts() -> None:
    ended: asyncio.Future[TandemError] = asyncio.get_running_loop().create_future()
    given_up = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(TandemError) as caught:
            await unless_gone(line_of(scope), given_up.wait())  # type: ignore[arg-type]
        ended.set_result(caught.value)

    async with connected(app) as (_, writer):
        writer.write(HEAD)
        writer.close()
        try:
            assert (await asyncio.wait_for(ended, 20)).reason is ErrorReason.CANCELLED
        finally:
            given_up.set()

    async def slow() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await unless_gone(Line(), slow())


def test_a_tally_shows_what_a_histogram_would() -> None:
    ours, theirs = Metrics(), Metrics()
    tally = ours.tally("x_seconds", "X.", (0.1, 1.0), ("kind",)).labels("a")
    histogram = theirs.histogram("x_seconds", "X.", (0.1, 1.0), ("kind",)).labels("a")
    for value in (0.05, 0.1, 0.5, 7.0):
        tally.observe(value)
        histogram.observe(value)
    assert ours.render() == theirs.render()
