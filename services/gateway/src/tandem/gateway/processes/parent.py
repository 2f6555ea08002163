"""A gateway of several processes: the parent, which starts them, ends them, and answers operators for all of them.

No request passes through it. It takes the HTTP port, but does not listen there.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.core.errors import TandemError
from tandem.core.ids import Role
from tandem.gateway.processes.everybody import TIMEOUT_S, Everybody
from tandem.gateway.processes.operators import AllAdmin, AllControl, AllTraces
from tandem.gateway.processes.order import Order
from tandem.gateway.processes.supervisor import GaveUp, Supervisor
from tandem.gateway.settings import GatewaySettings
from tandem.gateway.web.listening import hold_port, url_of
from tandem.rpc import convert, logs
from tandem.rpc.control import SERVICE_NAME as CONTROL_SERVICE
from tandem.rpc.control import Controlled, ControlServicer, LogLevel
from tandem.rpc.credentials import Credentials, TlsSettings
from tandem.rpc.exits import ExitCode
from tandem.rpc.run import Stop, announce
from tandem.rpc.server import GrpcServer
from tandem.rpc.tasks import TaskSupervisor
from tandem.v1 import admin_pb2, admin_pb2_grpc, control_pb2_grpc, trace_pb2_grpc

log = logging.getLogger(__name__)

ADMIN_GRACE_MS: Final = 1000
_AGAIN_S: Final = 0.2
"""Before a process whose health broke off is asked anew."""


class Parent:
    """`start`, then `run` until `stop`."""

    def __init__(self, settings: GatewaySettings, tls: TlsSettings, folder: Path) -> None:
        """folder: for sockets of the processes; only their user can enter it. Raises TandemError."""
        self._settings = settings
        self._folder = folder
        self._policies: dict[str, str] = {}
        self._levels: dict[str, str] = {}
        self._port = 0
        self.supervisor = Supervisor(settings.processes, self._command, drain_s=settings.drain_timeout_ms / 1000)
        everybody = Everybody(folder, lambda: self.supervisor.listening)
        self._everybody = everybody
        self._admin = GrpcServer(credentials=Credentials.from_settings(tls))
        admin, traces = AllAdmin(everybody, self._policies), AllTraces(everybody)
        own = ControlServicer(Controlled("gateway", (settings, tls)), LogLevel(logging.getLogger()))
        control = AllControl(own, everybody, self._levels)
        self._admin.add(admin_pb2_grpc.add_AdminServiceServicer_to_server, admin, "tandem.v1.AdminService")
        self._admin.add(trace_pb2_grpc.add_TraceServiceServicer_to_server, traces, "tandem.v1.TraceService")
        self._admin.add(control_pb2_grpc.add_ControlServiceServicer_to_server, control, CONTROL_SERVICE)
        self._ready: set[int] = set()
        self._tasks = TaskSupervisor(max_tasks=settings.processes)

    async def run(self, stop: Stop) -> None:
        """Runs all until a stop is asked for; then they have drained. Raises GaveUp, OSError, TandemError."""
        with hold_port(self._settings) as held:
            self._port = held.getsockname()[1]
            admin_address = self._admin.bind(self._settings.admin_address)
            await self._admin.start()
            keeping = asyncio.create_task(self.supervisor.run())
            starting = asyncio.create_task(self._announce(admin_address))
            asked = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({keeping, asked}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                starting.cancel()
                asked.cancel()
                await self._admin.drain()
                await self.supervisor.stop()
                await self._tasks.close()
                await self._admin.stop(ADMIN_GRACE_MS)
            await keeping

    async def _announce(self, admin_address: str) -> None:
        """Says where all listen, once they do."""
        for index in range(self._settings.processes):
            self._tasks.spawn(self._follow(index), f"health of process {index}")
        await self.supervisor.started.wait()
        address = f"{self._settings.host}:{self._port}"
        announce("gateway", address)
        announce("admin", admin_address)
        announce("url", url_of(self._settings, address))

    def _command(self, index: int, replaces: bool) -> Sequence[str]:
        changed = {f"{role}_policy": policy for role, policy in self._policies.items()} | self._levels
        order = Order(index, self._settings.processes, str(self._folder), self._port, replaces, changed)
        return [sys.executable, "-m", "tandem.gateway.processes.child", order.text()]

    async def _follow(self, index: int) -> None:
        """Follows the health of a process from life to life."""
        while True:
            await self.supervisor.wait_listening(index)
            with suppress(grpc.aio.AioRpcError):
                async with self._everybody.channel(index) as channel:
                    await self._set_policies(channel)
                    stub: Any = health_pb2_grpc.HealthStub(channel)
                    async for answer in stub.Watch(health_pb2.HealthCheckRequest(service="")):
                        await self._set_ready(index, answer.status == health_pb2.HealthCheckResponse.SERVING)
            await self._set_ready(index, False)
            await asyncio.sleep(_AGAIN_S)

    async def _set_policies(self, channel: grpc.aio.Channel) -> None:
        """What operators changed after a process was started, and before it served."""
        stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
        for role, policy in self._policies.items():
            request = admin_pb2.SetPolicyRequest(policy=policy, role=convert.role_to_proto(Role(role)))
            await stub.SetPolicy(request, timeout=TIMEOUT_S)

    async def _set_ready(self, index: int, ready: bool) -> None:
        """The gateway is ready when all that get requests are: those that serve."""
        (self._ready.add if ready else self._ready.discard)(index)
        serving = self.supervisor.listening
        await self._admin.set_ready(bool(serving) and serving <= self._ready)


async def serve_all(settings: GatewaySettings, tls: TlsSettings, stop: Stop) -> int:
    """Runs a gateway of several processes until it is asked to stop; returns the exit code."""
    logs.setup("gateway", worker_id="parent", level=settings.log_level, log_format=settings.log_format)
    log.info("settings, shared out among %d processes:\n%s", settings.processes, settings.describe())
    with TemporaryDirectory(prefix="tandem-gateway-") as folder:
        try:
            parent = Parent(settings, tls, Path(folder))
            stop.at_once = parent.supervisor.kill
            await parent.run(stop)
        except (TandemError, OSError) as error:
            log.error("the gateway cannot start: %s", error)
            return ExitCode.BAD_SETTINGS
        except GaveUp as error:
            log.error("the gateway ends: %s", error)
            return ExitCode.BAD_SETTINGS if error.code == ExitCode.BAD_SETTINGS else ExitCode.FAILED
    return stop.code
