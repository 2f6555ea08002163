"""Builds the bootstrap service from its settings, and runs it until it is asked to stop."""

from __future__ import annotations

import logging

from tandem.bootstrap.servicer import SERVICE_NAME, BootstrapServicer
from tandem.bootstrap.settings import BootstrapSettings
from tandem.bootstrap.store import MemoryStore
from tandem.core.errors import TandemError
from tandem.core.registry import RegistryLimits
from tandem.rpc import logs
from tandem.rpc.clock import SystemClock
from tandem.rpc.control import Controlled, add_control
from tandem.rpc.credentials import Credentials, TlsSettings
from tandem.rpc.exits import ExitCode
from tandem.rpc.run import Stop, announce
from tandem.rpc.server import GrpcServer
from tandem.rpc.tasks import TaskSupervisor
from tandem.v1 import bootstrap_pb2_grpc

log = logging.getLogger(__name__)


def _store(settings: BootstrapSettings) -> MemoryStore:
    limits = RegistryLimits(settings.lease_ttl_ms, settings.lease_grace_ms, settings.max_workers)
    return MemoryStore(limits, SystemClock(), max_watchers=settings.max_watchers, watch_queue=settings.watch_queue)


async def serve(settings: BootstrapSettings, tls: TlsSettings, stop: Stop) -> int:
    """Runs the service; returns its exit code."""
    logs.setup("bootstrap", level=settings.log_level, log_format=settings.log_format)
    log.info("settings:\n%s\n%s", settings.describe(), tls.describe())
    store = _store(settings)
    try:
        server = GrpcServer(credentials=Credentials.from_settings(tls))
        server.add(bootstrap_pb2_grpc.add_BootstrapServiceServicer_to_server, BootstrapServicer(store), SERVICE_NAME)
        add_control(server, Controlled("bootstrap", (settings, tls)))
        address = server.bind(settings.address)
    except TandemError as error:
        log.error("%s", error.message)
        return ExitCode.BAD_SETTINGS
    tasks = TaskSupervisor(on_crash=lambda name, _: stop.request(f"{name} crashed", ExitCode.FAILED))
    tasks.spawn(store.run(), "leases")
    await server.start()
    await server.set_ready(True)
    announce("bootstrap", address)
    await stop.wait()
    await server.drain()
    store.close()
    await server.stop(settings.stop_grace_ms)
    await tasks.close()
    return stop.code
