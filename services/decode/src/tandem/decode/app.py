"""Builds the decode service: the only place that makes its objects."""

from __future__ import annotations

from tandem.core.ids import Role
from tandem.decode.servicer import add_service
from tandem.decode.settings import DecodeSettings
from tandem.engine.choose import make_engine
from tandem.engine.worker.host import WorkerHost
from tandem.rpc.run import Stop


async def serve(settings: DecodeSettings, stop: Stop) -> int:
    """The service's whole life; returns its exit code."""
    engine = make_engine(Role.DECODE, settings)
    return await WorkerHost(Role.DECODE, settings, engine, add_service).run(stop)
