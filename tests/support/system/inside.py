"""A system in this process: bootstrap, one worker of each role with the mock engine, and a gateway, on one loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.bootstrap.servicer import SERVICE_NAME, BootstrapServicer
from tandem.bootstrap.settings import BootstrapSettings
from tandem.bootstrap.store import MemoryStore
from tandem.core.ids import Role
from tandem.core.registry import RegistryLimits
from tandem.decode.settings import DecodeSettings
from tandem.engine.choose import controlled, make_engine
from tandem.engine.worker.host import WorkerHost
from tandem.engine.worker.servicer import add_services as add_worker
from tandem.engine.worker.settings import EngineName, WorkerSettings
from tandem.gateway.app import Gateway
from tandem.gateway.settings import GatewaySettings
from tandem.prefill.settings import PrefillSettings
from tandem.rpc.client import open_channel
from tandem.rpc.clock import SystemClock
from tandem.rpc.control import Controlled, add_control
from tandem.rpc.credentials import Credentials, TlsSettings
from tandem.rpc.run import Stop
from tandem.rpc.server import GrpcServer
from tandem.v1 import bootstrap_pb2_grpc
from tests.support.gateway.cluster import LEASE_MS, MODEL_PATH, encoder

READY_S = 30


@dataclass(frozen=True, slots=True)
class Inside:
    """What a test talks to."""

    gateway: Gateway
    bootstrap: str
    http: httpx.AsyncClient

    @property
    def admin(self) -> str:
        """host:port of AdminService."""
        return self.gateway.admin_address


@asynccontextmanager
async def system_inside(tls: TlsSettings | None = None) -> AsyncIterator[Inside]:
    """Ready when it comes. The workers take their certificates from the environment, which the test sets alike."""
    tls = tls or TlsSettings()
    credentials = Credentials.from_settings(tls)
    async with _bootstrap(tls, credentials) as bootstrap:
        common = {"bootstrap_address": bootstrap, "engine": EngineName.MOCK, "model_path": str(MODEL_PATH)}
        prefill = PrefillSettings.load(worker_id="prefill-0", **common)
        decode = DecodeSettings.load(worker_id="decode-0", **common)
        keys = {"port": 0, "admin_address": "127.0.0.1:0", "api_keys": ("open sesame",)}
        settings = GatewaySettings.load(bootstrap_address=bootstrap, model_path=str(MODEL_PATH), **keys)
        async with (
            _worker(Role.PREFILL, prefill),
            _worker(Role.DECODE, decode),
        ):
            gateway = Gateway(settings, tls, encoder())
            await gateway.start()
            headers = {"Authorization": "Bearer open sesame"}
            base = f"http://{gateway.http_address}"
            try:
                await _ready(gateway.admin_address, credentials)
                async with httpx.AsyncClient(base_url=base, headers=headers, timeout=60) as http:
                    yield Inside(gateway, bootstrap, http)
            finally:
                await gateway.stop()


@asynccontextmanager
async def _bootstrap(tls: TlsSettings, credentials: Credentials) -> AsyncIterator[str]:
    store = MemoryStore(RegistryLimits(LEASE_MS, 500, 256), SystemClock(), max_watchers=16, watch_queue=64)
    server = GrpcServer(credentials=credentials)
    server.add(bootstrap_pb2_grpc.add_BootstrapServiceServicer_to_server, BootstrapServicer(store), SERVICE_NAME)
    add_control(server, Controlled("bootstrap", (BootstrapSettings(), tls)))
    address = server.bind("127.0.0.1:0")
    await server.start()
    try:
        yield address
    finally:
        store.close()
        await server.stop(0)


@asynccontextmanager
async def _worker(role: Role, settings: WorkerSettings) -> AsyncIterator[None]:
    def add_services(server: GrpcServer, host: WorkerHost) -> None:
        add_worker(server, host)
        add_control(server, controlled(role, settings))

    stop = Stop()
    running = asyncio.create_task(WorkerHost(role, settings, make_engine(role, settings), add_services).run(stop))
    try:
        yield
    finally:
        stop.request("the test is over")
        assert await running == 0


async def _ready(address: str, credentials: Credentials) -> None:
    async with open_channel(address, credentials) as channel, asyncio.timeout(READY_S):
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        async for response in call:
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                break
        call.cancel()
