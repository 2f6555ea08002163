"""Prompts arrive while all streams run, and neither before nor after."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tandem.cli.bench_pd.disturbance import STREAM_PROMPT_TOKENS, disturb
from tandem.cli.bench_pd.numbers import Load
from tandem.core.errors import TandemError

STREAMS, STREAM_TOKENS, ARRIVALS = 3, 5, 4
LONG = 50


class Server:
    """Says the first token of a stream when all have asked, and the rest when so many prompts have arrived."""

    def __init__(self, *, breaks: bool = False) -> None:
        self.asked: list[int] = []
        """Tokens of each prompt, in order."""
        self._all, self._enough = asyncio.Event(), asyncio.Event()
        self._breaks = breaks

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        body = json.loads(await reader.readexactly(size))
        tokens, wanted = len(body["input_ids"]), body["sampling_params"]["max_new_tokens"]
        self.asked.append(tokens)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        if tokens == STREAM_PROMPT_TOKENS:
            if self.asked.count(tokens) == STREAMS:
                self._all.set()
            await self._all.wait()
            self._say(writer, 1)
            await writer.drain()
            if not self._breaks:
                await self._enough.wait()
                self._say(writer, wanted)
        else:
            if self.asked.count(LONG) == ARRIVALS:
                self._enough.set()
            self._say(writer, wanted)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    def _say(self, writer: asyncio.StreamWriter, tokens: int) -> None:
        event = b"data: " + json.dumps({"meta_info": {"completion_tokens": tokens}}).encode() + b"\n\n"
        writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[str]:
    """Its host:port."""
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listener:
        host, port = listener.sockets[0].getsockname()
        yield f"{host}:{port}"


def prompt(tokens: int) -> list[int]:
    """Of so many tokens."""
    return [7] * tokens


async def test_prompts_arrive_from_the_first_tokens_of_all_on() -> None:
    server = Server()
    async with listening(server) as address:
        found = await disturb(address, Load(LONG, 200.0), STREAMS, STREAM_TOKENS, prompt)
    assert server.asked[:STREAMS] == [STREAM_PROMPT_TOKENS] * STREAMS
    assert [one.tokens for one in found.streams] == [STREAM_TOKENS] * STREAMS
    assert len(found.arrivals) >= ARRIVALS
    assert server.asked.count(LONG) == len(found.arrivals)
    assert found.dropped == 0


async def test_nothing_arrives_where_nothing_is_asked_for() -> None:
    server = Server()
    server._enough.set()
    async with listening(server) as address:
        found = await disturb(address, Load(0, 0.0), STREAMS, STREAM_TOKENS, prompt)
    assert (server.asked, found.arrivals) == ([STREAM_PROMPT_TOKENS] * STREAMS, ())


async def test_a_stream_that_breaks_ends_all_with_its_reason() -> None:
    async with listening(Server(breaks=True)) as address:
        with pytest.raises(TandemError, match="1 of 5 tokens"):
            await disturb(address, Load(LONG, 200.0), STREAMS, STREAM_TOKENS, prompt)
