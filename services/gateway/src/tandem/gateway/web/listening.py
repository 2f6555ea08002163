"""How the gateway's HTTP port listens: TLS, and what a client may do before its request is whole or with its answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.settings import GatewaySettings
from tandem.gateway.web.line import LineProtocol
from tandem.rpc.metrics_server import HttpServer

LISTEN_BACKLOG: Final = 2048
KEEP_ALIVE_S: Final = 75
MAX_HEADER_BYTES: Final = 64 << 10
"""Of a request's line and headers."""
HEADERS_TIMEOUT_S: Final = 30.0
"""From the first byte of a connection, or its opening, to the end of its first request's headers; of later ones, from
their first byte."""


def listen(settings: GatewaySettings, *, shared: bool = False) -> socket.socket:
    """The socket of the HTTP port. shared: with other processes, see `hold_port`.

    Raises OSError where the address can't be bound.
    """
    address, family = (settings.host, settings.port), _family(settings)
    listener = socket.create_server(address, family=family, backlog=LISTEN_BACKLOG, reuse_port=shared)
    # Connections inherit it. The kernel ends those whose client takes nothing any more, as if it had gone.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, settings.client_stall_ms)
    return listener


def hold_port(settings: GatewaySettings) -> socket.socket:
    """Takes the HTTP port for processes of this user that will `listen` there, and does not listen itself.

    The port is taken as by one who does not share it, so that two gateways never divide their clients between them.
    Raises OSError where the address can't be bound.
    """
    held = socket.socket(_family(settings))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if held.family == socket.AF_INET6:
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        held.bind((settings.host, settings.port))
    except OSError:
        held.close()
        raise
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return held


def url_of(settings: GatewaySettings, address: str) -> str:
    """What clients ask at host:port of the HTTP port."""
    return f"{'http' if settings.http_cert_file is None else 'https'}://{address}"


def _family(settings: GatewaySettings) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in settings.host else socket.AF_INET


def server_of(app: ASGIApp, settings: GatewaySettings) -> HttpServer:
    """Serves an application. Raises TandemError if the certificate can't be used."""
    context = _tls(settings)
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, settings.drain_timeout_ms // 1000),
        ssl_context_factory=None if context is None else lambda *_: context,
    )
    return HttpServer(config)


def _tls(settings: GatewaySettings) -> ssl.SSLContext | None:
    cert, key = settings.http_cert_file, settings.http_key_file
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        missing = "http_cert_file" if cert is None else "http_key_file"
        text = f"setting {missing} ({settings.env_name(missing)}) is missing: TLS needs a certificate and its key"
        raise TandemError(ErrorReason.INVALID_ARGUMENT, text, field=missing)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        text = f"the certificate {cert} and key {key} of the HTTP port can't be used: {error}"
        raise TandemError(ErrorReason.INVALID_ARGUMENT, text, field="http_cert_file") from None
    return context


class PatientProtocol(LineProtocol):
    """With bounds on the headers of a request and on the time that they take."""

    # With more than 30 in its dictionary, 28 of them from uvicorn, Python shares its keys no more: that is 1 KiB.
    __slots__ = ("_header_bytes", "_in_headers", "_too_slow")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = 0
        self._in_headers = True
        self._too_slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request is expected."""
        super().connection_made(transport)
        self._too_slow = self.loop.call_later(HEADERS_TIMEOUT_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is expected."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """What comes before the end of the headers is counted; the chunk that ends them is not."""
        super().data_received(data)
        if self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_headers = True
        if self._too_slow is None:
            self._too_slow = self.loop.call_later(HEADERS_TIMEOUT_S, self._give_up)

    def on_headers_complete(self) -> None:
        """What follows is its body, which the application bounds."""
        self._in_headers = False
        self._header_bytes = 0
        self._stop_waiting()
        super().on_headers_complete()

    def _stop_waiting(self) -> None:
        if self._too_slow is not None:
            self._too_slow.cancel()
            self._too_slow = None

    def _give_up(self) -> None:
        self._too_slow = None
        if self._header_bytes:
            self._refuse(b"408 Request Timeout")
        else:
            self.transport.close()

    def _refuse(self, status: bytes) -> None:
        """Ends the connection, with a word to the client where no answer is on its way."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()
