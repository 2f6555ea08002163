"""Builds the bootstrap service from its settings, and runs it until it is asked to stop."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tandem.bootstrap.bootstrap_metrics import BootstrapMetrics
from tandem.bootstrap.servicer import SERVICE_NAME, BootstrapServicer
from tandem.bootstrap.settings import BootstrapSettings
from tandem.bootstrap.store import MemoryStore
from tandem.core.cluster import Event
from tandem.core.errors import TandemError
from tandem.core.registry import RegistryLimits
from tandem.rpc import logs
from tandem.rpc.clock import SystemClock
from tandem.rpc.collecting import spare_what_is_there
from tandem.rpc.control import Controlled, add_control
from tandem.rpc.credentials import Credentials, TlsSettings
from tandem.rpc.exits import ExitCode
from tandem.rpc.loop_lag import measure_lag
from tandem.rpc.metrics import Metrics
from tandem.rpc.metrics_server import MetricsServer
from tandem.rpc.run import Stop, announce
from tandem.rpc.server import GrpcServer
from tandem.rpc.tasks import TaskSupervisor
from tandem.rpc.tracing.provider import Tracing
from tandem.rpc.tracing.service import add_trace_service
from tandem.rpc.tracing.settings import TraceSettings
from tandem.v1 import bootstrap_pb2_grpc

log = logging.getLogger(__name__)


def _store(settings: BootstrapSettings, on_change: Callable[[Event], None]) -> MemoryStore:
    limits = RegistryLimits(settings.lease_ttl_ms, settings.lease_grace_ms, settings.max_workers)
    return MemoryStore(
        limits,
        SystemClock(),
        max_watchers=settings.max_watchers,
        watch_queue=settings.watch_queue,
        on_change=on_change,
    )


def _listener(settings: BootstrapSettings, metrics: Metrics) -> MetricsServer | None:
    async def render() -> bytes:
        return metrics.render()

    return MetricsServer(settings.metrics_address, render) if settings.metrics_address else None


async def serve(settings: BootstrapSettings, tls: TlsSettings, stop: Stop) -> int:
    """Runs the service; returns its exit code."""
    logs.setup("bootstrap", level=settings.log_level, log_format=settings.log_format)
    trace = TraceSettings.load()
    log.info("settings:\n%s\n%s\n%s", settings.describe(), tls.describe(), trace.describe())
    counted = BootstrapMetrics(lambda: store.workers, lambda: store.watchers)
    store = _store(settings, counted.changed)
    listener = _listener(settings, counted.metrics)
    tracing = Tracing("bootstrap", "bootstrap", trace)
    try:
        server = GrpcServer(
            credentials=Credentials.from_settings(tls), on_call=counted.metrics.count_rpc, spans=tracing
        )
        add_trace_service(server, tracing)
        server.add(bootstrap_pb2_grpc.add_BootstrapServiceServicer_to_server, BootstrapServicer(store), SERVICE_NAME)
        add_control(server, Controlled("bootstrap", (settings, tls)))
        address = server.bind(settings.address)
        if listener is not None:
            announce("metrics", await listener.start())
    except TandemError as error:
        log.error("%s", error.message)
        return ExitCode.BAD_SETTINGS
    tasks = TaskSupervisor(on_crash=lambda name, _: stop.request(f"{name} crashed", ExitCode.FAILED))
    tasks.spawn(store.run(), "leases")
    tasks.spawn(measure_lag(counted.lag.observe), "event loop lag")
    spare_what_is_there()
    await server.start()
    await server.set_ready(True)
    announce("bootstrap", address)
    await stop.wait()
    await server.drain()
    store.close()
    await server.stop(settings.stop_grace_ms)
    if listener is not None:
        await listener.close()
    await tasks.close()
    await tracing.close()
    return stop.code
