"""The process: follows a gateway until it is asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from functools import partial

from tandem.cli.cluster import drain_at_gateway
from tandem.cli.planner.hook import run_hook
from tandem.cli.planner.pilot import Pilot
from tandem.cli.planner.planner_metrics import PlannerMetrics
from tandem.cli.planner.settings import PlannerSettings
from tandem.cli.top import watch
from tandem.core.errors import TandemError
from tandem.core.ids import WorkerId
from tandem.core.planner.demand import Costs
from tandem.rpc import logs
from tandem.rpc.backoff import Backoff, BackoffPolicy
from tandem.rpc.credentials import Credentials, TlsSettings
from tandem.rpc.exits import ExitCode
from tandem.rpc.loop_lag import measure_lag
from tandem.rpc.metrics_server import MetricsServer
from tandem.rpc.run import Stop, announce
from tandem.rpc.tasks import TaskSupervisor

log = logging.getLogger(__name__)


async def serve(settings: PlannerSettings, tls: TlsSettings, stop: Stop, costs: Costs | None = None) -> int:
    """Runs until asked to stop; returns the exit code. settings: with an address of AdminService. costs: of a request;
    None = they are measured."""
    logs.setup("planner", level=settings.log_level, log_format=settings.log_format)
    log.info("settings:\n%s\n%s", settings.describe(), tls.describe())
    credentials, metrics = Credentials.from_settings(tls), PlannerMetrics()

    async def render() -> bytes:
        return metrics.metrics.render()

    async def drain(worker_id: WorkerId, draining: bool) -> None:
        await drain_at_gateway(settings.admin_address, worker_id, draining=draining, credentials=credentials)

    listener = MetricsServer(settings.metrics_address, render) if settings.metrics_address else None
    if listener is not None:
        announce("metrics", await listener.start())
    tasks = TaskSupervisor(on_crash=lambda name, _: stop.request(f"{name} crashed", ExitCode.FAILED))
    hook = partial(run_hook, settings.apply, timeout_s=settings.apply_timeout_s) if settings.apply else None
    pilot = Pilot(settings, metrics, tasks, drain, hook, costs)
    tasks.spawn(measure_lag(metrics.lag.observe), "event loop lag")
    tasks.spawn(_follow(settings, credentials, metrics, pilot), "cluster")
    await stop.wait()
    await tasks.close()
    if listener is not None:
        await listener.close()
    return stop.code


async def _follow(settings: PlannerSettings, credentials: Credentials, metrics: PlannerMetrics, pilot: Pilot) -> None:
    """Reads what the gateway says, for ever."""
    loop, backoff = asyncio.get_running_loop(), Backoff(BackoffPolicy(max_ms=5000), random.Random())
    while True:
        messages = watch(settings.admin_address, credentials, settings.interval_ms)
        try:
            async with contextlib.aclosing(messages):
                async for message in messages:
                    metrics.connected.set(1)
                    backoff.reset()
                    await pilot.take(message, loop.time())
        except TandemError as error:
            log.warning("%s", error.message)
        metrics.connected.set(0)
        await asyncio.sleep(backoff.next_ms() / 1000)
