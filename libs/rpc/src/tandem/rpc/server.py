"""The gRPC server of a service: lifecycle, health, reflection, and where it may listen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.credentials import PLAIN, Credentials
from tandem.rpc.interceptors import CallHook, CallSpans, ErrorInterceptor, no_hook
from tandem.rpc.operators import Operators
from tandem.rpc.options import SERVER_OPTIONS

log = logging.getLogger(__name__)


class ServerState(Enum):
    """Life of a server."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


TRANSITIONS: Final[dict[ServerState, frozenset[ServerState]]] = {
    ServerState.STARTING: frozenset({ServerState.SERVING, ServerState.STOPPED}),
    ServerState.SERVING: frozenset({ServerState.DRAINING, ServerState.STOPPED}),
    ServerState.DRAINING: frozenset({ServerState.STOPPED}),
    ServerState.STOPPED: frozenset(),
}


class GrpcServer:
    """Add services, bind, start; set ready when the service is; drain; stop.

    Must be built on the event loop that runs it.
    """

    def __init__(
        self, *, credentials: Credentials = PLAIN, on_call: CallHook = no_hook, spans: CallSpans | None = None
    ) -> None:
        """on_call: see tandem.rpc.interceptors.CallHook; Metrics.count_rpc is one. spans: record traced calls."""
        operators = Operators(credentials.admin_identities, secure=credentials.secure)
        interceptor = ErrorInterceptor(operators, on_call, spans)
        self._credentials = credentials
        self._server = grpc.aio.server(interceptors=(interceptor,), options=SERVER_OPTIONS)
        self._health = health.HealthServicer()
        self._services: list[str] = []
        self._state = ServerState.STARTING
        self._ready = False
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    @property
    def state(self) -> ServerState:
        """Where the server is in its life."""
        return self._state

    @property
    def ready(self) -> bool:
        """What the overall health says."""
        return self._ready

    def add(self, add_to_server: Callable[[Any, grpc.aio.Server], None], servicer: object, name: str) -> None:
        """Adds a service before `start`: its generated `add_XServicer_to_server`, and its full name."""
        add_to_server(servicer, self._server)
        self._services.append(name)

    def bind(self, address: str) -> str:
        """Listens on host:port (port 0: any free one) or unix:path, and returns the address as bound.

        Raises INVALID_ARGUMENT where others could connect and the credentials forbid that, and where the address cannot
        be bound.
        """
        self._credentials.check_bind(address)
        unix = address.startswith("unix:")
        tls = None if unix else self._credentials.server()
        try:
            port = self._server.add_secure_port(address, tls) if tls else self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT, f"cannot bind {address}: {error}", field="address"
            ) from error
        return address if unix else f"{address.rpartition(':')[0]}:{port}"

    async def start(self) -> None:
        """Starts to serve, not ready yet. Once only."""
        self._move(ServerState.SERVING)
        names = [*self._services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._server)
        await self._publish(ready=False)
        await self._server.start()

    async def set_ready(self, ready: bool) -> None:
        """Sets the health of every service and of the whole. Has no effect once draining."""
        if self._state is ServerState.SERVING and ready != self._ready:
            await self._publish(ready=ready)

    async def drain(self) -> None:
        """Says not ready, for good, and goes on serving until `stop`. Idempotent."""
        if self._state is ServerState.SERVING:
            self._move(ServerState.DRAINING)
            self._ready = False
            await self._health.enter_graceful_shutdown()

    async def stop(self, grace_ms: int) -> None:
        """Takes no new RPCs, gives the running ones `grace_ms`, then cancels them. Idempotent."""
        if self._state is ServerState.STOPPED:
            return
        await self.drain()
        await self._server.stop(grace_ms / 1000)
        self._move(ServerState.STOPPED)

    async def _publish(self, *, ready: bool) -> None:
        self._ready = ready
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._services):
            await self._health.set(name, status)

    def _move(self, state: ServerState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise TandemError(ErrorReason.INTERNAL, f"a server cannot go from {self._state.value} to {state.value}")
        self._state = state
        log.info("server %s", state.value)
