"""The real gateway, bootstrap, prefill and decode services in this process, with the mock engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tandem.cli.trace import Trace, trace_of
from tandem.core.errors import ErrorReason
from tandem.core.ids import Role, RoomId
from tandem.core.room.events import Why
from tandem.decode.settings import DecodeSettings
from tandem.engine.mock.engine import MockEngine
from tandem.engine.mock.settings import MockSettings
from tandem.engine.worker.host import WorkerHost
from tandem.engine.worker.servicer import add_services
from tandem.engine.worker.settings import EngineName, WorkerSettings
from tandem.gateway.app import Gateway
from tandem.gateway.settings import GatewaySettings
from tandem.prefill.settings import PrefillSettings
from tandem.rpc.credentials import PLAIN, TlsSettings
from tandem.rpc.run import Stop
from tandem.rpc.tracing.layout import ShownSpan
from tests.support.gateway.cluster import MODEL_PATH, bootstrap_here, encoder
from tests.support.tracing.whole import is_settled

MODEL = MODEL_PATH.name
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
SLOW: dict[str, Any] = {"prefill_us_per_token": 5_000, "chunk_tokens": 16, "decode_us_per_step": 5_000}
"""Settings of the mock with which a request takes long enough to be caught in each of its parts, on a slow machine."""
PROMPT = "Let me tell you a long story about a river. " * 4
_KINDS: dict[Role, type[WorkerSettings]] = {Role.PREFILL: PrefillSettings, Role.DECODE: DecodeSettings}


@dataclass(frozen=True, slots=True)
class Here:
    """What a test talks to."""

    gateway: Gateway
    hosts: dict[str, WorkerHost]
    """By worker id."""
    http: httpx.AsyncClient
    stops: list[Stop] = field(default_factory=list)

    async def ask(self, text: str = "Once upon a time", **options: Any) -> httpx.Response:
        """One completion; options: new_tokens, headers, and fields of the body."""
        headers = options.pop("headers", {})
        body = {"model": MODEL, "prompt": text, "max_tokens": options.pop("new_tokens", 4), **options}
        return await self.http.post("/v1/completions", json=body, headers=headers)

    async def trace(self, wanted: str) -> Trace:
        """As `tandem trace` gets it."""
        return await trace_of(self.gateway.admin_address, wanted, PLAIN)

    async def settled_trace(self, wanted: str) -> Trace:
        """The same, once nothing of it is still to come."""
        async with asyncio.timeout(20):
            while True:
                found = await self.trace(wanted)
                if is_settled(found):
                    return found
                await asyncio.sleep(0.02)


def named(trace: Trace, name: str) -> list[ShownSpan]:
    """Spans of a name."""
    return [span for span in trace.spans if span.name == name]


def one(trace: Trace, name: str) -> ShownSpan:
    """The only span of a name."""
    (found,) = named(trace, name)
    return found


@asynccontextmanager
async def services_here(
    prefills: int = 1, decodes: int = 1, mock: dict[str, Any] | None = None, **gateway: Any
) -> AsyncIterator[Here]:
    """Everything, ready. mock: settings of the engines. gateway: of the gateway. Tracing is set by the environment."""
    async with AsyncExitStack() as stack:
        bootstrap = await stack.enter_async_context(bootstrap_here())
        engine = MockSettings(model=MODEL, tokenizer_path=MODEL_PATH, **(mock or {}))
        names = [(Role.PREFILL, f"p{i}") for i in range(prefills)] + [(Role.DECODE, f"d{i}") for i in range(decodes)]
        hosts, stops = {}, []
        for role, worker_id in names:
            kind = _KINDS[role]
            fields: dict[str, Any] = {"worker_id": worker_id, "bootstrap_address": bootstrap, "drain_timeout_ms": 5_000}
            settings = kind(engine=EngineName.MOCK, model_path=str(MODEL_PATH), **fields)
            hosts[worker_id] = host = WorkerHost(role, settings, MockEngine(engine, role), add_services)
            stop = Stop()
            stops.append(stop)
            stack.push_async_callback(_end, asyncio.create_task(host.run(stop)), stop)
        given = {"port": 0, "admin_address": "127.0.0.1:0", "model_path": str(MODEL_PATH), "retry_backoff_ms": 1}
        started = Gateway(
            GatewaySettings.load(bootstrap_address=bootstrap, **(given | gateway)), TlsSettings(), encoder()
        )
        await started.start()
        stack.push_async_callback(started.stop)
        base = f"http://{started.http_address}"
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=base, timeout=60, trust_env=False))
        await _all_here(started, len(names))
        yield Here(started, hosts, http, stops)


async def _end(task: asyncio.Task[int], stop: Stop) -> None:
    stop.request("the test ends")
    await asyncio.wait_for(task, 30)


async def _all_here(gateway: Gateway, workers: int) -> None:
    pool = gateway._pool
    async with asyncio.timeout(30):
        while len(pool.sessions(Role.PREFILL, MODEL)) + len(pool.sessions(Role.DECODE, MODEL)) < workers:
            await pool.wait_changed()


async def room_of(here: Here, worker_id: str) -> RoomId:
    """The room that runs on a mock worker, once its prefill computes."""
    async with asyncio.timeout(20):
        while True:
            for room in _moving(here, worker_id):
                return room
            await asyncio.sleep(0.002)


def _moving(here: Here, worker_id: str) -> Iterator[RoomId]:
    computed = {room for name in here.hosts if name.startswith("p") for room in _with_pages(here, name)}
    yield from (room for room in _with_pages(here, worker_id) if room in computed)


def _with_pages(here: Here, worker_id: str) -> Iterator[RoomId]:
    engine: Any = here.hosts[worker_id].engine
    for leg in engine._running().book.legs.values():
        if leg.lease is not None:
            yield leg.room


async def give_up_one(here: Here, reason: ErrorReason) -> None:
    """Ends the room that runs, on whichever decode worker has it, once its prefill computes."""
    async with asyncio.timeout(20):
        while True:
            for worker_id in (name for name in here.hosts if name.startswith("d")):
                for room in _moving(here, worker_id):
                    assert await here.hosts[worker_id].engine.abort(room, Why(reason, "planted"))
                    return
            await asyncio.sleep(0.002)
