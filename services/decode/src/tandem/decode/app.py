"""Builds the decode service: the only place that makes its objects."""

from __future__ import annotations

import logging

from tandem.core.ids import Role
from tandem.decode.settings import DecodeSettings
from tandem.engine.choose import controlled, make_engine
from tandem.engine.worker.host import WorkerHost
from tandem.engine.worker.servicer import add_services as add_worker
from tandem.rpc.control import add_control
from tandem.rpc.run import Stop
from tandem.rpc.server import GrpcServer

log = logging.getLogger(__name__)


async def serve(settings: DecodeSettings, stop: Stop) -> int:
    """The service's whole life; returns its exit code."""
    engine = make_engine(Role.DECODE, settings)
    shown = controlled(Role.DECODE, settings)
    log.info("settings:\n%s", shown.describe())

    def add_services(server: GrpcServer, host: WorkerHost) -> None:
        add_worker(server, host)
        add_control(server, shown)

    return await WorkerHost(Role.DECODE, settings, engine, add_services).run(stop)
