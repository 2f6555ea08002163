"""Builds the prefill service: the only place that makes its objects."""

from __future__ import annotations

from tandem.core.ids import Role
from tandem.engine.choose import make_engine
from tandem.engine.worker.host import WorkerHost
from tandem.prefill.servicer import add_service
from tandem.prefill.settings import PrefillSettings
from tandem.rpc.run import Stop


async def serve(settings: PrefillSettings, stop: Stop) -> int:
    """The service's whole life; returns its exit code."""
    engine = make_engine(Role.PREFILL, settings)
    return await WorkerHost(Role.PREFILL, settings, engine, add_service).run(stop)
