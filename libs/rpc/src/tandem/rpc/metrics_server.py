"""GET /metrics over HTTP, for services that speak nothing but gRPC otherwise."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.metrics import CONTENT_TYPE
from tandem.rpc.tasks import TaskSupervisor

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 16
"""More get 503."""
KEEP_ALIVE_S: Final = 75
"""Longer than the usual interval between two scrapes."""
CLOSE_S: Final = 1
"""What a scrape that runs may take at the end."""
BACKLOG: Final = 64

Render = Callable[[], Awaitable[bytes]]
"""Makes the text of one scrape."""


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: services have their own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


class MetricsServer:
    """Answers scrapes on the service's own event loop. `start`, then `close`."""

    def __init__(self, address: str, render: Render) -> None:
        """address: host:port, port 0 = any free one; IPv6 in brackets."""
        self._asked = address
        self._render = render
        self._server: HttpServer | None = None
        self._serving: asyncio.Task[None] | None = None
        self._tasks = TaskSupervisor(max_tasks=1)

    async def start(self) -> str:
        """Listens; returns host:port. Raises TandemError(INVALID_ARGUMENT) if the address can't be bound."""
        host, _, port = self._asked.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=BACKLOG)
        except (OSError, ValueError, OverflowError) as error:
            text = f"metrics can't be served at {self._asked!r}: {error}; host:port is wanted"
            raise TandemError(ErrorReason.INVALID_ARGUMENT, text, field="metrics_address") from error
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            log_level="warning",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=CLOSE_S,
        )
        self._server = HttpServer(config)
        self._serving = self._tasks.spawn(self._server.serve(sockets=[listener]), "metrics")
        address = f"{host}:{listener.getsockname()[1]}"
        log.info("metrics on http://%s/metrics", address)
        return address

    async def close(self) -> None:
        """Ends it. Idempotent."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        del receive  # a scrape has no body
        if scope["type"] != "http":
            return
        if scope["path"] != "/metrics":
            status, body = 404, b"There is only /metrics here.\n"
        elif scope["method"] not in ("GET", "HEAD"):
            status, body = 405, b"Use GET.\n"
        else:
            status, body = 200, await self._render()
        kind = CONTENT_TYPE if status == 200 else "text/plain; charset=utf-8"
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
