"""A mock worker that speaks HTTP as the peers' workers do: `python -m tandem.cli.bench_gateway.http_worker ROLE`.

It answers chat completions with so many tokens as are asked for: the first at once, then one per step to every stream,
all streams at the same moment, as an engine's batch does. A prefill worker answers with one token, whatever is
asked. It is as lean as Python allows, so that what is measured is what stands before it: no HTTP library, one write per
token. Everything else that is asked (health, models, facts of the server) gets one fixed answer.

`GET /bench/closed` tells when clients left before their answer was complete, in monotonic ns, and forgets it.
`GET /bench/step/STEP_US/FIRST_US` sets the time of a step, and that before the first token.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from typing import Any, Final

import uvloop

from tandem.rpc.run import announce

FACTS: Final = {
    "status": "healthy",
    "object": "list",
    "data": [{"id": "mock", "object": "model", "created": 0, "owned_by": "bench"}],
    "model_path": "mock",
    "served_model_name": "mock",
    "is_generation": True,
    "tokenizer_path": "mock",
    "max_running_requests": 65_536,
    "disaggregation_mode": "",
    "dp_size": 1,
}
MAX_HEAD: Final = 1 << 16


class Engine:
    """One step for all streams that run."""

    def __init__(self, *, prefill: bool) -> None:
        self.prefill = prefill
        self.step_s = 0.001
        self.first_s = 0.0
        self.running: dict[Connection, None] = {}
        self.closed_ns: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def join(self, stream: Connection) -> None:
        """From the next step on it gets tokens."""
        self.running[stream] = None
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._due = loop.time() + self.step_s
            self._timer = loop.call_at(self._due, self._step)

    def _step(self) -> None:
        for stream in list(self.running):
            stream.token()
        self._timer = None
        if self.running:
            loop = asyncio.get_running_loop()
            self._due = max(self._due + self.step_s, loop.time())
            self._timer = loop.call_at(self._due, self._step)


class Connection(asyncio.Protocol):
    """One client, one request after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._transport: Any = None
        self._read = b""
        self._left = self._tokens = 0
        self._with_usage = False
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        busy = self._engine.running.pop(self, self) is None or self._waiting is not None
        if self._waiting is not None:
            self._waiting.cancel()
        if busy:
            self._engine.closed_ns.append(time.monotonic_ns())

    def data_received(self, data: bytes) -> None:
        """Collects one request and answers it."""
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            if len(head) > MAX_HEAD:
                self._transport.abort()
            return
        if len(body) < _length(head):
            if b"100-continue" in head.lower():
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        self._read = b""
        path = head.split(b" ", 2)[1]
        if path.endswith(b"/chat/completions"):
            self._generate(json.loads(body))
        else:
            self._document(self._told(path.decode()))

    def _told(self, path: str) -> object:
        if path == "/bench/closed":
            closed, self._engine.closed_ns = self._engine.closed_ns, []
            return closed
        if path.startswith("/bench/step/"):
            step_us, first_us = path.rsplit("/", 2)[1:]
            self._engine.step_s, self._engine.first_s = int(step_us) / 1e6, int(first_us) / 1e6
        return FACTS

    def _generate(self, asked: dict[str, Any]) -> None:
        tokens = 1 if self._engine.prefill else int(asked.get("max_completion_tokens") or asked.get("max_tokens") or 16)
        self._with_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        begin = self._stream if asked.get("stream") else self._whole
        if self._engine.first_s:
            self._waiting = asyncio.get_running_loop().call_later(self._engine.first_s, begin, tokens)
        else:
            begin(tokens)

    def _whole(self, tokens: int) -> None:
        self._waiting = None
        message = {"role": "assistant", "content": " word" * tokens}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
        self._document({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _usage(tokens)})

    def _stream(self, tokens: int) -> None:
        self._waiting = None
        self._left = self._tokens = tokens
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
            + _chunked(GREETING)
        )
        self.token()
        if self._left:
            self._engine.join(self)

    def token(self) -> None:
        """Writes one token; after the last one the end."""
        self._left -= 1
        if self._left:
            self._transport.write(TOKEN)
        else:
            self._engine.running.pop(self, None)
            usage = _chunked(usage_event(self._tokens)) if self._with_usage else b""
            self._transport.write(TOKEN + LAST + usage + DONE + b"0\r\n\r\n")

    def _document(self, document: object) -> None:
        body = json.dumps(document).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


_HEAD: Final = {"id": "chatcmpl-0123456789abcdef0123456789abcdef", "created": 1, "model": "mock"}


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}


def _event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    return _chunk({"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]})


def usage_event(tokens: int) -> bytes:
    """What a stream says of itself behind its last token."""
    return _chunk({"choices": [], "usage": _usage(tokens)})


def _chunk(rest: dict[str, Any]) -> bytes:
    document = {**_HEAD, "object": "chat.completion.chunk", **rest}
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def _chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


GREETING: Final = _event({"role": "assistant", "content": ""})
TOKEN: Final = _chunked(_event({"content": " word"}))
LAST: Final = _chunked(_event({}, "length"))
DONE: Final = _chunked(b"data: [DONE]\n\n")


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def serve(role: str) -> None:
    """Serves until SIGTERM."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    engine = Engine(prefill=role == "prefill")
    server = await loop.create_server(lambda: Connection(engine), "127.0.0.1", 0, backlog=4096)
    announce("worker", f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await stop.wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
