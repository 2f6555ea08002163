"""Mutated HTTP requests, written to plain sockets, so that they need not be HTTP."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from tandem.core.errors import CATALOGUE, ErrorReason
from tests.support.fuzz.mutations import mutate_bytes, mutate_json

CHAT: Final = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What do you like to eat?"}]
SEEDS: Final[Mapping[str, tuple[dict[str, Any], ...]]] = {
    "/v1/chat/completions": (
        {"model": "tandem-tiny", "messages": CHAT, "max_tokens": 4, "temperature": 0, "logprobs": True, "seed": 3},
        {"messages": CHAT, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 3, "n": 2},
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
        },
    ),
    "/v1/completions": (
        {"model": "tandem-tiny", "prompt": ["Once", "Twice"], "max_tokens": 4, "logprobs": 2, "echo": True},
        {"prompt": [5, 6, 7], "stream": True, "stop": ["a", "b"], "logit_bias": {"7": 2}, "max_tokens": 4},
    ),
    "/generate": (
        {"text": "Once", "sampling_params": {"max_new_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 4}},
        {"input_ids": [[5, 6], [7]], "sampling_params": [{"max_new_tokens": 2}, {}], "return_logprob": [True, False]},
        {"text": ["a", "b"], "rid": ["x", "y"], "stream": True, "top_logprobs_num": 2, "return_logprob": True},
    ),
    "/v1/messages": (
        {"model": "tandem-tiny", "max_tokens": 4, "system": "Be brief.", "messages": CHAT[1:], "stop_sequences": ["x"]},
        {"max_tokens": 4, "messages": CHAT[1:], "stream": True, "top_k": 3, "metadata": {"user_id": "u"}},
    ),
    "/v1/messages/count_tokens": ({"messages": CHAT[1:], "system": [{"type": "text", "text": "a"}]},),
    "/v1/tokenize": ({"prompt": ["a", "bc"], "add_special_tokens": False}, {"messages": CHAT}),
    "/v1/detokenize": ({"tokens": [[5, 6], [7]], "skip_special_tokens": True},),
}
GETS: Final = (
    "/v1/models",
    "/v1/models/tandem-tiny",
    "/health",
    "/ready",
    "/get_model_info",
    "/openapi.json",
    "/x?a=%00",
)
METHODS: Final = ("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "PATCH", "post", "P\x00ST", "CONNECT", "")
HEADERS: Final = (
    ("Content-Length", "-1"),
    ("Content-Length", "99999999999999999999"),
    ("Content-Length", "5"),
    ("Transfer-Encoding", "chunked"),
    ("Transfer-Encoding", "gzip, chunked"),
    ("Expect", "100-continue"),
    ("Content-Type", "text/plain"),
    ("Content-Encoding", "gzip"),
    ("Authorization", "Bearer \xff\xfe"),
    ("X-Request-Id", "é" * 200),
    ("X-Session-Id", "s" * 9000),
    ("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"),
    ("traceparent", "ff-zz"),
    ("Host", ""),
    ("Upgrade", "websocket"),
    ("Connection", "upgrade"),
    ("X", "y" * 70_000),
)
STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
ANSWER_S: Final = 60.0
SILENCE_S: Final = 0.3
"""Of a server that was asked; then it is told that nothing more follows, which may end what it does."""
MAY_BE: Final = frozenset({ErrorReason.NOT_SUPPORTED, ErrorReason.NO_WORKER, ErrorReason.POOL_EXHAUSTED})
"""Reasons whose status is of the 500s and that a client can bring about."""


def request(dice: random.Random) -> bytes:
    """One request, mutated in one of many ways."""
    if dice.random() < 0.1:
        method, path, body = "GET", dice.choice(GETS), b""
    else:
        method, path = "POST", dice.choice(list(SEEDS))
        document = dice.choice(SEEDS[path])
        body = _text(mutate_json(dice, document) if dice.random() < 0.7 else document)
    kind = dice.random()
    if kind < 0.15:
        body = mutate_bytes(dice, body)
    if 0.15 < kind < 0.2:
        path = _path(dice, path)
    if 0.2 < kind < 0.25:
        method = dice.choice(METHODS)
    headers = [("Host", "gateway"), ("Content-Type", "application/json"), ("Connection", "close")]
    chunked = dice.random() < 0.2
    headers.append(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body))))
    if dice.random() < 0.25:
        headers.insert(dice.randrange(len(headers) + 1), dice.choice(HEADERS))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
    raw = "\r\n".join(lines).encode("latin-1", "replace") + (_chunks(dice, body) if chunked else body)
    return mutate_bytes(dice, raw) if dice.random() < 0.15 else raw


def _text(document: Any) -> bytes:
    return json.dumps(document).encode()


def _path(dice: random.Random, path: str) -> str:
    return dice.choice(
        (
            path + "/",
            path + "?x=" + "y" * 5000,
            path.upper(),
            "/" + path,
            path + "%2f..",
            "*",
            "http://a" + path,
            "/é",
            "/" * 99,
        )
    )


def _chunks(dice: random.Random, body: bytes) -> bytes:
    """The body in chunks, of which some may be wrong."""
    parts: list[bytes] = []
    while body:
        size = dice.randint(1, 64)
        part, body = body[:size], body[size:]
        told = format(len(part) + dice.choice((0,) * 60 + (1, -1, 2**40)), "x")
        parts.append(told.encode() + dice.choice((b"\r\n",) * 60 + (b"\n", b";x=y\r\n")) + part + b"\r\n")
    return b"".join(parts) + dice.choice((b"0\r\n\r\n",) * 20 + (b"", b"0\r\n", b"0\r\nA: b\r\n\r\n"))


async def send(host: str, port: int, raw: bytes) -> bytes:
    """Writes it, and reads until the server ends. Raises TimeoutError if it does not."""
    async with asyncio.timeout(ANSWER_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(raw)
            await writer.drain()
            return await _until_silence(reader, writer) + await reader.read()
        except (ConnectionResetError, BrokenPipeError):
            return b""
        finally:
            writer.close()


async def _until_silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """What is said until nothing is said for a while; then the server is told that its client has nothing more."""
    found = bytearray()
    with suppress(TimeoutError):
        while True:
            async with asyncio.timeout(SILENCE_S):
                part = await reader.read(1 << 16)
            if not part:
                return bytes(found)
            found += part
    writer.write_eof()
    return bytes(found)


def problem_of(answer: bytes) -> str:
    """What is wrong with an answer; empty if nothing is. None at all may be: what was asked need not have been HTTP."""
    match = STATUS.match(answer)
    if match is None:
        return "" if not answer else f"no HTTP: {answer[:80]!r}"
    status = int(match[1])
    if status < 500:
        return ""
    _, _, body = answer.partition(b"\r\n\r\n")
    try:
        reason = ErrorReason(json.loads(body)["error"]["code"].upper())
    except (ValueError, KeyError, TypeError):
        return f"{status} without a reason: {answer[:200]!r}"
    known = CATALOGUE[reason].http_status == status and reason in MAY_BE
    return "" if known else f"{status} {reason.value}: {body[:200]!r}"
