"""A viewer of the dashboard that reads nothing, over a real socket: it is dropped, and little waits for it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from tandem.gateway.dashboard.feed import Feed
from tandem.gateway.web.dashboard_endpoints import EVENTS, Dashboard, DashboardEvents
from tandem.rpc.clock import SystemClock

SNAPSHOT = b"x" * (1 << 20)


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[int]:
    """Serves an application; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http="httptools", lifespan="off", log_config=None))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def test_it_is_dropped_when_its_connection_is_full() -> None:
    made = 0
    ended = asyncio.Event()

    async def make() -> bytes:
        nonlocal made
        made += 1
        return SNAPSHOT

    feed = Feed(make, SystemClock(), max_viewers=1, interval_s=0.001)
    events = DashboardEvents(Dashboard(feed, on=True), slow_s=0.3)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await events(scope, receive, send)
        ended.set()

    async with serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        writer.write(f"GET {EVENTS} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        async with asyncio.timeout(60):
            await ended.wait()
        assert feed.viewers == 0
        # What the kernel and uvicorn hold of a connection; without a bound it would have gone on.
        assert 0 < made < 64
        async with asyncio.timeout(60):
            while await reader.read(1 << 20):
                pass
        writer.close()
        await writer.wait_closed()
