"""A gateway over real sockets, a real bootstrap, and fake workers, all in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import grpc
import httpx
import openai
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.bootstrap.servicer import SERVICE_NAME, BootstrapServicer
from tandem.bootstrap.store import MemoryStore
from tandem.core.ids import Role
from tandem.core.registry import RegistryLimits
from tandem.gateway.app import Gateway
from tandem.gateway.settings import GatewaySettings
from tandem.gateway.text.parsers import load_parsers
from tandem.gateway.text.tokenizer import HuggingFaceEncoder
from tandem.rpc.client import open_channel
from tandem.rpc.clock import SystemClock
from tandem.rpc.credentials import TlsSettings
from tandem.rpc.server import GrpcServer
from tandem.rpc.tracing.provider import Tracing
from tandem.rpc.tracing.service import add_trace_service
from tandem.rpc.tracing.settings import TraceSettings
from tandem.v1 import bootstrap_pb2_grpc
from tests.support.gateway.fake_worker import FakeWorker, Script, count_up, hand_over

MODEL_PATH = Path(__file__).resolve().parents[3] / "models" / "tandem-tiny"
LEASE_MS = 600_000


@cache
def encoder() -> HuggingFaceEncoder:
    """The tiny model's tokenizer, loaded once."""
    return HuggingFaceEncoder(str(MODEL_PATH))


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a test talks to."""

    gateway: Gateway
    prefills: list[FakeWorker]
    decodes: list[FakeWorker]
    bootstrap: bootstrap_pb2_grpc.BootstrapServiceStub
    http: httpx.AsyncClient
    client: openai.AsyncOpenAI
    admin: grpc.aio.Channel

    async def wait_ready(self, ready: bool = True) -> None:
        """Returns when the gateway's health says so."""
        wanted = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        call = health_pb2_grpc.HealthStub(self.admin).Watch(health_pb2.HealthCheckRequest())
        async with asyncio.timeout(20):
            async for response in call:
                if response.status == wanted:
                    break
        call.cancel()


@asynccontextmanager
async def bootstrap_here() -> AsyncIterator[str]:
    """The real registry in this process; yields its address."""
    limits = RegistryLimits(LEASE_MS, 500, 256)
    store = MemoryStore(limits, SystemClock(), max_watchers=16, watch_queue=64)
    tracing = Tracing("bootstrap", "bootstrap", TraceSettings())
    server = GrpcServer(spans=tracing)
    add_trace_service(server, tracing)
    server.add(bootstrap_pb2_grpc.add_BootstrapServiceServicer_to_server, BootstrapServicer(store), SERVICE_NAME)
    address = server.bind("127.0.0.1:0")
    await server.start()
    try:
        yield address
    finally:
        store.close()
        await server.stop(0)


@asynccontextmanager
async def workers_at(
    bootstrap: bootstrap_pb2_grpc.BootstrapServiceStub, prefill: Sequence[Script], decode: Sequence[Script]
) -> AsyncIterator[tuple[list[FakeWorker], list[FakeWorker]]]:
    """Registered workers, one per script, named p0, p1, ... and d0, d1, ..."""
    prefills = [FakeWorker(f"p{place}", Role.PREFILL, script) for place, script in enumerate(prefill)]
    decodes = [FakeWorker(f"d{place}", Role.DECODE, script) for place, script in enumerate(decode)]
    for one in [*prefills, *decodes]:
        await one.start(bootstrap)
    try:
        yield prefills, decodes
    finally:
        for one in [*prefills, *decodes]:
            await one.die()


@asynccontextmanager
async def cluster(
    prefill: Sequence[Script] = (hand_over,), decode: Sequence[Script] = (count_up,), **settings: object
) -> AsyncIterator[Cluster]:
    """A gateway that sees every worker. settings: of GatewaySettings."""
    given = {"port": 0, "admin_address": "127.0.0.1:0", "model_path": str(MODEL_PATH), "retry_backoff_ms": 1}
    async with bootstrap_here() as address, open_channel(address) as channel:
        stub = bootstrap_pb2_grpc.BootstrapServiceStub(channel)
        async with workers_at(stub, prefill, decode) as (prefills, decodes):
            loaded = GatewaySettings.load(bootstrap_address=address, **(given | settings))
            gateway = Gateway(loaded, TlsSettings(), encoder(), parsers=load_parsers(loaded, encoder()))
            await gateway.start()
            base = f"http://{gateway.http_address}"
            async with (
                httpx.AsyncClient(base_url=base, timeout=30) as http,
                openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, timeout=30) as client,
                open_channel(gateway.admin_address) as admin,
            ):
                now = Cluster(gateway, prefills, decodes, stub, http, client, admin)
                for one in [*prefills, *decodes]:
                    await one.wait_until(lambda worker: worker.sessions == 1)
                if prefill and decode:
                    await now.wait_ready()
                try:
                    yield now
                finally:
                    await http.aclose()
                    await client.close()
                    await gateway.stop()
