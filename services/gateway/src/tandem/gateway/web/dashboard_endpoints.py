"""The dashboard over HTTP: its page, which holds no data, and the events that bring them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.dashboard.feed import Feed
from tandem.gateway.web.generation import Reply, unless_gone
from tandem.gateway.web.line import line_of

log = logging.getLogger(__name__)

PAGE: Final = "/dashboard"
EVENTS: Final = "/dashboard/events"
FILES: Final[Mapping[str, tuple[str, str]]] = {
    PAGE: ("index.html", "text/html; charset=utf-8"),
    "/dashboard/dashboard.js": ("dashboard.js", "text/javascript; charset=utf-8"),
    "/dashboard/plot.js": ("plot.js", "text/javascript; charset=utf-8"),
    "/dashboard/dashboard.css": ("dashboard.css", "text/css; charset=utf-8"),
    "/dashboard/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path to file and media type. None holds data, so none needs a key."""
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
SLOW_S: Final = 10.0
"""A viewer who takes nothing for so long is dropped."""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """What the HTTP API needs of it."""

    feed: Feed
    on: bool
    """Whether anybody may look."""


class DashboardPages:
    """The page and its files, read once."""

    def __init__(self, dashboard: Dashboard) -> None:
        folder = resources.files("tandem.gateway.dashboard") / "static"
        self._on = dashboard.on
        self._files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}

    async def file(self, request: Request) -> Response:
        """One of FILES."""
        _refuse_unless(self._on)
        content, kind = self._files[request.url.path]
        return Response(content, media_type=kind, headers=dict(HEADERS))


class DashboardEvents:
    """ASGI application of EVENTS: a snapshot at once, then one per second."""

    def __init__(self, dashboard: Dashboard, slow_s: float = SLOW_S) -> None:
        self._feed = dashboard.feed
        self._on = dashboard.on
        self._slow_s = slow_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one viewer. Raises OVERLOADED if there are too many."""
        del receive
        _refuse_unless(self._on)
        with self._feed.place():
            try:
                await unless_gone(line_of(scope), self._show(Reply(send)))
            except TimeoutError:
                log.warning("a viewer of the dashboard reads too slowly and is dropped")
            except TandemError as error:
                if error.reason is not ErrorReason.CANCELLED:
                    raise
                # The viewer has gone, as viewers do.

    async def _show(self, reply: Reply) -> None:
        await reply.begin_stream()
        async for snapshot in self._feed.snapshots():
            async with asyncio.timeout(self._slow_s):
                await reply.write(b"event: snapshot\ndata: " + snapshot + b"\n\n")
        await reply.write(b"event: end\ndata: {}\n\n", more=False)


def _refuse_unless(on: bool) -> None:
    if not on:
        raise TandemError(
            ErrorReason.UNKNOWN_ENDPOINT, "The dashboard is turned off (TANDEM_GATEWAY_DASHBOARD_VIEWERS is 0)."
        )
