"""Asks one server over HTTP/1.1, one connection per request, and notes when what comes back comes.

httptools parses; nothing lies between the socket and the clock but the event loop, so that the generator costs little.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httptools

from tandem.cli.authorities import trust, untrusted
from tandem.cli.bench_serve.apis import error_name
from tandem.cli.bench_serve.choices import Api
from tandem.cli.bench_serve.reading import AnswerReader
from tandem.core.errors import ErrorReason, TandemError

CONNECT_TIMEOUT_S: Final = 10.0
MAX_ERROR_BYTES: Final = 64 << 10
SESSION_HEADER: Final = "X-Session-Id"
"""By which the gateway knows a conversation; who does not know it ignores it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask."""

    host: str
    port: int
    prefix: str
    """Of every path."""
    api: Api
    tls: ssl.SSLContext | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    """IP address of the host; empty: not known yet."""

    @property
    def tls_name(self) -> str | None:
        """The name that its certificate has to have; None without TLS."""
        return self.host if self.tls else None

    def request(self, body: bytes, session: str = "") -> bytes:
        """The whole HTTP request. session: see `ask`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"POST {self.prefix}{self.api.path} HTTP/1.1", f"Host: {host}:{self.port}"]
        lines += [f"Content-Length: {len(body)}", "Content-Type: application/json", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"{SESSION_HEADER}: {session}"] if session else []
        return "\r\n".join([*lines, "", ""]).encode() + body


def target_of(url: str, api: Api, api_key: str = "", ca_file: Path | None = None) -> Target:
    """A server at a URL, with or without /v1 at its end. ca_file: see `authorities.trust`. Raises INVALID_ARGUMENT."""
    try:
        parts = urlsplit(url.rstrip("/").removesuffix("/v1"))
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{url!r} is not like http://host:port", field="url")
    tls = trust(url, ca_file)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return Target(host, port or (443 if tls else 80), parts.path.rstrip("/"), api, tls, headers)


async def resolved(target: Target) -> Target:
    """The target with an address that takes connections, looked up once. Raises NO_WORKER."""
    loop = asyncio.get_running_loop()
    reason = "it has no address"
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            for *_, address in await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM):
                try:
                    transport, _ = await loop.create_connection(
                        asyncio.Protocol, *address[:2], ssl=target.tls, server_hostname=target.tls_name
                    )
                except OSError as error:
                    reason = f"{error}{untrusted(error)}"
                    continue
                transport.abort()
                return replace(target, address=str(address[0]))
    except OSError as error:  # TimeoutError too
        reason = str(error) or "no answer"
    raise TandemError(ErrorReason.NO_WORKER, f"{target.host}:{target.port} can't be reached: {reason}")


Clock = Callable[[], float]


async def ask(
    target: Target, body: bytes, timeout_s: float, clock: Clock = time.perf_counter, session: str = ""
) -> AnswerReader:
    """One request to its end. Never raises for what the server or the network does: the answer's `error` says it.

    session: name of the conversation that it is a turn of; empty: none is sent.
    """
    loop = asyncio.get_running_loop()
    reader = AnswerReader(target.api, clock())
    exchange = _Exchange(target.request(body, session), reader, loop.create_future(), clock)
    try:
        async with asyncio.timeout(timeout_s):
            await loop.create_connection(
                lambda: exchange,
                target.address or target.host,
                target.port,
                ssl=target.tls,
                server_hostname=target.tls_name,
            )
            await exchange.over
    except TimeoutError:
        reader.error = "timeout"
    except OSError as error:
        reader.error = reader.error or f"connect_{type(error).__name__}"
    finally:
        exchange.close()
    reader.finish()
    if reader.error:
        reader.ended_s = clock()
    return reader


class _Exchange(asyncio.Protocol):
    """A request and its answer on a connection of their own."""

    def __init__(self, request: bytes, reader: AnswerReader, over: asyncio.Future[None], clock: Clock) -> None:
        self.over = over
        self._request = request
        self._reader = reader
        self._clock = clock
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._now_s = 0.0
        self._status = 0
        self._refusal = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._now_s = self._clock()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._reader.error = self._reader.error or "protocol"
            self._end()

    def on_headers_complete(self) -> None:
        """httptools: the status is known."""
        self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """httptools: a part of the body."""
        if self._status == 200:
            self._reader.feed(data, self._now_s)
        elif len(self._refusal) < MAX_ERROR_BYTES:
            self._refusal += data

    def on_message_complete(self) -> None:
        """httptools: the body is over."""
        if self._status != 200:
            self._reader.error = refusal_name(self._status, bytes(self._refusal))
        self._end()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done() and self._status not in (0, 200):
            self._reader.error = refusal_name(self._status, bytes(self._refusal))
        self._end()

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def close(self) -> None:
        """Ends the connection, whatever is on it."""
        if self._transport is not None:
            self._transport.abort()


def refusal_name(status: int, body: bytes) -> str:
    """`http_503_no_worker`: the status, and what the body says if it is an error document."""
    try:
        name = error_name(json.loads(body))
    except ValueError:
        name = "error"
    return f"http_{status}" if name in ("error", str(status)) else f"http_{status}_{name}"
