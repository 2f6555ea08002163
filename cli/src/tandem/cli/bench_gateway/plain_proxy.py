"""A plain PD proxy on aiohttp: `python plain_proxy.py PREFILL_URL DECODE_URL`. What Python costs without anything else.

It sends each request to both workers at the same time and passes decode's answer on as it comes. No health checks, no
policies, no retries, no metrics. It needs aiohttp and nothing of ours.
"""

from __future__ import annotations

import asyncio
import random
import sys

import aiohttp
from aiohttp import web


class Proxy:
    """One pair of workers."""

    def __init__(self, prefill: str, decode: str) -> None:
        self._prefill, self._decode = prefill, decode
        self._session: aiohttp.ClientSession

    async def open(self, app: web.Application) -> None:
        """One session for all requests, without a limit of connections."""
        del app
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
        )

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """One request, on both workers."""
        body = await request.json()
        body |= {"bootstrap_host": "127.0.0.1", "bootstrap_port": 8998, "bootstrap_room": random.getrandbits(63)}
        prefilling = asyncio.create_task(self._ask_prefill(request.path, body))
        try:
            async with self._session.post(self._decode + request.path, json=body) as answer:
                kind = {"Content-Type": answer.headers["Content-Type"]}
                if not body.get("stream"):
                    return web.Response(body=await answer.read(), status=answer.status, headers=kind)
                response = web.StreamResponse(status=answer.status, headers=kind)
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response
        finally:
            prefilling.cancel()

    async def _ask_prefill(self, path: str, body: dict[str, object]) -> None:
        async with self._session.post(self._prefill + path, json=body) as answer:
            await answer.read()


async def main() -> None:
    """Serves until it is ended."""
    proxy = Proxy(*sys.argv[1:3])
    app = web.Application()
    app.on_startup.append(proxy.open)
    app.router.add_post("/v1/chat/completions", proxy.chat)
    # Only so is a client that leaves early noticed before the next write.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    print(f"listening proxy 127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
