"""What any worker offers over gRPC: a WorkerHost as a servicer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc

from tandem.core.ids import Role
from tandem.engine.worker.host import WorkerHost
from tandem.rpc.server import GrpcServer
from tandem.v1 import decode_pb2_grpc, prefill_pb2_grpc, session_pb2, unified_pb2_grpc

_SERVICES: Final[dict[Role, tuple[Callable[[Any, grpc.aio.Server], None], str]]] = {
    Role.PREFILL: (prefill_pb2_grpc.add_PrefillServiceServicer_to_server, "tandem.v1.PrefillService"),
    Role.DECODE: (decode_pb2_grpc.add_DecodeServiceServicer_to_server, "tandem.v1.DecodeService"),
    Role.UNIFIED: (unified_pb2_grpc.add_UnifiedServiceServicer_to_server, "tandem.v1.UnifiedService"),
}


def add_services(server: GrpcServer, host: WorkerHost) -> None:
    """Adds the service of each role that the worker can take; those that it has not at the moment refuse calls."""
    for role, (add, name) in _SERVICES.items():
        if role in host.engine.roles:
            server.add(add, WorkerServicer(host, role), name)


class WorkerServicer:
    """The methods of PrefillService, DecodeService and UnifiedService, which are the same. It decides nothing: the host
    does it."""

    def __init__(self, host: WorkerHost, role: Role) -> None:
        """role: that the service is of."""
        self._worker = host
        self._role = role

    @property
    def _host(self) -> WorkerHost:
        """If it has the role now. Raises TandemError(DRAINING)."""
        self._worker.require(self._role)
        return self._worker

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[session_pb2.SessionRequest], context: Any
    ) -> None:
        """One Session of a gateway."""
        await self._host.session(request_iterator, context.write)

    async def SwitchRole(  # noqa: N802
        self, request: session_pb2.SwitchRoleRequest, context: Any
    ) -> session_pb2.SwitchRoleResponse:
        """Another role."""
        return await self._host.switch_role(request)

    async def Abort(  # noqa: N802
        self, request: session_pb2.AbortRequest, context: Any
    ) -> session_pb2.AbortResponse:
        """Ends one room."""
        return await self._host.abort(request)

    async def GetStatus(  # noqa: N802
        self, request: session_pb2.GetStatusRequest, context: Any
    ) -> session_pb2.GetStatusResponse:
        """The worker's state now."""
        return await self._host.get_status()

    async def WatchStatus(  # noqa: N802
        self, request: session_pb2.WatchStatusRequest, context: Any
    ) -> AsyncIterator[session_pb2.WatchStatusResponse]:
        """The worker's state whenever it changes."""
        async for response in self._host.watch_status(request):
            yield response

    async def WatchHeldPages(  # noqa: N802
        self, request: session_pb2.WatchHeldPagesRequest, context: Any
    ) -> AsyncIterator[session_pb2.WatchHeldPagesResponse]:
        """What its prefix cache holds, and what changes."""
        async for change in self._host.watch_held_pages():
            yield session_pb2.WatchHeldPagesResponse(change=change)

    async def ListRankRooms(  # noqa: N802
        self, request: session_pb2.ListRankRoomsRequest, context: Any
    ) -> session_pb2.ListRankRoomsResponse:
        """The open rooms of each rank."""
        return await self._host.list_rooms(request)
