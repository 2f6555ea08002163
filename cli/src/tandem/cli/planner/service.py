"""The process: follows gateways until it is asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial

from tandem.cli.cluster import drain_at_gateway
from tandem.cli.frame import Message
from tandem.cli.planner.hook import run_hook
from tandem.cli.planner.pilot import Pilot
from tandem.cli.planner.planner_metrics import PlannerMetrics
from tandem.cli.planner.settings import PlannerSettings
from tandem.cli.planner.sights import Gateways
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
    """Runs until asked to stop; returns the exit code. settings: with a gateway's address at least. costs: of a
    request; None = they are measured."""
    logs.setup("planner", level=settings.log_level, log_format=settings.log_format)
    log.info("settings:\n%s\n%s", settings.describe(), tls.describe())
    credentials, metrics = Credentials.from_settings(tls), PlannerMetrics()

    async def render() -> bytes:
        return metrics.metrics.render()

    async def drain(worker_id: WorkerId, draining: bool) -> None:
        await _drain(settings.gateways, worker_id, draining=draining, credentials=credentials)

    listener = MetricsServer(settings.metrics_address, render) if settings.metrics_address else None
    if listener is not None:
        announce("metrics", await listener.start())
    tasks = TaskSupervisor(on_crash=lambda name, _: stop.request(f"{name} crashed", ExitCode.FAILED))
    hook = partial(run_hook, settings.apply, timeout_s=settings.apply_timeout_s) if settings.apply else None
    pilot = Pilot(settings, metrics, tasks, drain, hook, costs)
    tasks.spawn(measure_lag(metrics.lag.observe), "event loop lag")
    gateways = Gateways(settings.gateways)
    for address in settings.gateways:
        metrics.hears(address, heard=False)
        messages = partial(watch, address, credentials, settings.interval_ms)
        tasks.spawn(follow(address, messages, gateways, metrics, pilot), f"gateway {address}")
    await stop.wait()
    await tasks.close()
    if listener is not None:
        await listener.close()
    return stop.code


async def follow(
    address: str,
    messages: Callable[[], AsyncGenerator[Message, None]],
    gateways: Gateways,
    metrics: PlannerMetrics,
    pilot: Pilot,
) -> None:
    """Reads what one gateway says, for ever. messages: raises TandemError when the gateway is not heard, and never
    ends otherwise."""
    loop, backoff, heard = asyncio.get_running_loop(), Backoff(BackoffPolicy(max_ms=5000), random.Random()), True
    while True:
        try:
            async with contextlib.aclosing(messages()) as said:
                async for message in said:
                    if not heard:
                        log.info("the gateway at %s is heard again", address)
                    heard = True
                    metrics.hears(address, heard=True)
                    backoff.reset()
                    if (sight := gateways.take(address, message)) is not None:
                        await pilot.take(sight, loop.time())
        except TandemError as error:
            if heard:
                log.warning("%s: nothing is decided until it is heard", error.message)
        heard = False
        metrics.hears(address, heard=False)
        gateways.lost(address)
        pilot.blind()
        await asyncio.sleep(backoff.next_ms() / 1000)


async def _drain(gateways: Sequence[str], worker_id: WorkerId, *, draining: bool, credentials: Credentials) -> None:
    """By the first gateway that does it. Raises the TandemError of the last one where none does."""
    for address in gateways[:-1]:
        with contextlib.suppress(TandemError):
            return await drain_at_gateway(address, worker_id, draining=draining, credentials=credentials)
    return await drain_at_gateway(gateways[-1], worker_id, draining=draining, credentials=credentials)
