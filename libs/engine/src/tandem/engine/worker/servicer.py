"""What any worker offers over gRPC: a WorkerHost as a servicer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from tandem.engine.worker.host import WorkerHost
from tandem.v1 import session_pb2


class WorkerServicer:
    """The methods of PrefillService, DecodeService and UnifiedService, which are the same. It decides nothing: the host
    does it."""

    def __init__(self, host: WorkerHost) -> None:
        self._host = host

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[session_pb2.SessionRequest], context: Any
    ) -> None:
        """One Session of a gateway."""
        await self._host.session(request_iterator, context.write)

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
