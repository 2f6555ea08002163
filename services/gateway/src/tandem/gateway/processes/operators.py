"""What operators ask a gateway of several processes: their parent asks all of them, and answers for all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import grpc

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role
from tandem.gateway.operate.pace import Watchers
from tandem.gateway.processes import merging
from tandem.gateway.processes.everybody import TIMEOUT_S, Everybody
from tandem.rpc import convert
from tandem.rpc.control import ControlServicer
from tandem.rpc.operators import changed
from tandem.rpc.tasks import TaskSupervisor
from tandem.rpc.telemetry import metadata
from tandem.rpc.tracing.service import as_one
from tandem.v1 import admin_pb2, admin_pb2_grpc, control_pb2, control_pb2_grpc, trace_pb2, trace_pb2_grpc

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]
_AGAIN_S: Final = 0.2
"""Before a process whose stream broke is asked anew."""


class AllAdmin(admin_pb2_grpc.AdminServiceServicer):
    """AdminService over all processes."""

    def __init__(self, everybody: Everybody, policies: dict[str, str]) -> None:
        """policies: by role, what operators have set; those that start anew get it too."""
        self._all = everybody
        self._policies = policies
        self._watchers = Watchers()

    async def ListClusterWorkers(  # noqa: N802 - the name is the contract's
        self, request: admin_pb2.ListClusterWorkersRequest, context: _Context
    ) -> admin_pb2.ListClusterWorkersResponse:
        """Every worker that some process knows."""
        del context
        return merging.workers(await self._all.all(partial(_admin, "ListClusterWorkers", request)))

    async def SetPolicy(  # noqa: N802
        self, request: admin_pb2.SetPolicyRequest, context: _Context
    ) -> admin_pb2.SetPolicyResponse:
        """On all processes; those that are being started get it when they serve."""
        del context
        answers = await self._all.all(partial(_admin, "SetPolicy", request))
        before: admin_pb2.SetPolicyResponse = answers[0]
        of = {"prefill": before.prefill_before, "decode": before.decode_before, "unified": before.unified_before}
        role = convert.role_from_proto(request.role) if request.role else None
        for each in Role if role is None else (role,):
            self._policies[each.value] = request.policy
            changed(f"policy of {each.value}, all processes", of[each.value], request.policy)
        return before

    async def DrainWorker(  # noqa: N802
        self, request: admin_pb2.DrainWorkerRequest, context: _Context
    ) -> admin_pb2.DrainWorkerResponse:
        """Through any process to bootstrap, which tells all."""
        del context
        answer: admin_pb2.DrainWorkerResponse = await self._all.first(partial(_admin, "DrainWorker", request))
        changed(f"worker {request.worker_id}", "", "draining")
        return answer

    async def UndrainWorker(  # noqa: N802
        self, request: admin_pb2.UndrainWorkerRequest, context: _Context
    ) -> admin_pb2.UndrainWorkerResponse:
        """Through any process to bootstrap, which tells all."""
        del context
        answer: admin_pb2.UndrainWorkerResponse = await self._all.first(partial(_admin, "UndrainWorker", request))
        changed(f"worker {request.worker_id}", "", "takes rooms")
        return answer

    async def GetTrace(  # noqa: N802
        self, request: admin_pb2.AdminGetTraceRequest, context: _Context
    ) -> admin_pb2.AdminGetTraceResponse:
        """One process asks the workers as well; the others show what they keep themselves."""
        del context
        first, *others = self._all.here
        asked = trace_pb2.GetTraceRequest()
        if (key := request.WhichOneof("key")) is not None:
            setattr(asked, key, getattr(request, key))
        gathered: admin_pb2.AdminGetTraceResponse
        gathered, *own = await asyncio.gather(
            self._all.one(first, partial(_admin, "GetTrace", request)),
            *(self._all.one(index, partial(_own_trace, asked)) for index in others),
        )
        from_one = trace_pb2.GetTraceResponse(
            trace_id=gathered.trace_id, spans=gathered.spans, dropped_spans=gathered.dropped_spans
        )
        whole = as_one([from_one, *own])
        return admin_pb2.AdminGetTraceResponse(
            trace_id=whole.trace_id, spans=whole.spans, dropped_spans=whole.dropped_spans, silent=gathered.silent
        )

    async def ListRooms(  # noqa: N802
        self, request: admin_pb2.ListRoomsRequest, context: _Context
    ) -> admin_pb2.ListRoomsResponse:
        """The rooms of one process after the other."""
        del context
        here = self._all.here
        asked, after = merging.place_of(request.after)
        index = next((one for one in here if one >= asked), None)
        counts = admin_pb2.ListRoomsRequest(page_size=1)
        totals = await self._all.all(partial(_admin, "ListRooms", counts))
        page = admin_pb2.ListRoomsResponse(total=sum(answer.total for answer in totals))
        if index is None:
            return page
        wanted = admin_pb2.ListRoomsRequest(page_size=request.page_size, after=after if index == asked else 0)
        found: admin_pb2.ListRoomsResponse = await self._all.one(index, partial(_admin, "ListRooms", wanted))
        page.rooms.extend(found.rooms)
        if found.next_after:
            page.next_after = merging.cursor(index, found.next_after)
        elif index < here[-1]:
            page.next_after = merging.cursor(index + 1, 0)
        return page

    async def AbortRoom(  # noqa: N802
        self, request: admin_pb2.AbortRoomRequest, context: _Context
    ) -> admin_pb2.AbortRoomResponse:
        """By the process that has the room."""
        del context
        answers = await self._all.all(partial(_abort, request))
        found = next((answer for answer in answers if answer is not None), None)
        if found is None:
            raise TandemError(ErrorReason.UNKNOWN_ROOM, f"no process of this gateway has a room {request.room}")
        changed(f"room {request.room} of request {found.room.request_id}", "running", "cancelled")
        return found

    async def WatchCluster(  # noqa: N802
        self, request: admin_pb2.WatchClusterRequest, context: _Context
    ) -> AsyncIterator[admin_pb2.WatchClusterResponse]:
        """The numbers of all processes, at an even pace."""
        del context
        watch = _Watch(self._all, request)
        try:
            async with aclosing(self._watchers.paced(request.interval_ms)) as times:
                async for at_ms in times:
                    yield await watch.numbers(at_ms)
        finally:
            await watch.close()


class _Watch:
    """Follows the numbers of every process that serves."""

    def __init__(self, everybody: Everybody, request: admin_pb2.WatchClusterRequest) -> None:
        self._all = everybody
        self._request = request
        self._latest: dict[int, admin_pb2.WatchClusterResponse] = {}
        self._gone = admin_pb2.WatchClusterResponse()
        self._followed: dict[int, asyncio.Event] = {}
        """Set when a process has spoken, or its stream broke."""
        self._tasks = TaskSupervisor()

    async def numbers(self, at_ms: int) -> admin_pb2.WatchClusterResponse:
        """The latest numbers of all; waits for the first of those that are new."""
        for index in self._all.here:
            if index not in self._followed:
                self._followed[index] = spoken = asyncio.Event()
                self._tasks.spawn(self._follow(index, spoken), f"numbers of process {index}")
        await asyncio.gather(*(spoken.wait() for spoken in self._followed.values()))
        return merging.numbers(at_ms, [self._latest[index] for index in sorted(self._latest)], self._gone)

    async def close(self) -> None:
        await self._tasks.close()

    async def _follow(self, index: int, spoken: asyncio.Event) -> None:
        try:
            async with self._all.channel(index) as channel:
                stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
                async for message in stub.WatchCluster(self._request):
                    self._latest[index] = message
                    spoken.set()
        except grpc.aio.AioRpcError as error:
            log.warning("process %d shows no numbers: %s: %s", index, error.code().name, error.details())
        finally:
            if (last := self._latest.pop(index, None)) is not None:
                merging.counted(self._gone, last)
            spoken.set()
        await asyncio.sleep(_AGAIN_S)
        del self._followed[index]


class AllTraces(trace_pb2_grpc.TraceServiceServicer):
    """TraceService over all processes."""

    def __init__(self, everybody: Everybody) -> None:
        self._all = everybody

    async def GetTrace(  # noqa: N802
        self, request: trace_pb2.GetTraceRequest, context: _Context
    ) -> trace_pb2.GetTraceResponse:
        """The spans of one trace."""
        del context
        return as_one(await self._all.all(partial(_own_trace, request)))


class AllControl(control_pb2_grpc.ControlServiceServicer):
    """ControlService over all processes: settings are those of the whole gateway."""

    def __init__(self, own: ControlServicer, everybody: Everybody, levels: dict[str, str]) -> None:
        """own: of the parent. levels: "log_level", once an operator has set one for good."""
        self._own = own
        self._all = everybody
        self._levels = levels

    async def GetSettings(  # noqa: N802
        self, request: control_pb2.GetSettingsRequest, context: _Context
    ) -> control_pb2.GetSettingsResponse:
        """The settings in force, secrets masked; limits are those of all processes together."""
        return await self._own.GetSettings(request, context)

    async def SetLogLevel(  # noqa: N802
        self, request: control_pb2.SetLogLevelRequest, context: _Context
    ) -> control_pb2.SetLogLevelResponse:
        """On the parent and all processes."""
        answer = await self._own.SetLogLevel(request, context)
        await self._all.all(partial(_set_level, request))
        if not request.for_ms:
            self._levels["log_level"] = request.level
        return answer


async def _admin(method: str, request: Any, channel: grpc.aio.Channel) -> Any:
    stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
    return await getattr(stub, method)(request, timeout=TIMEOUT_S, metadata=metadata())


async def _abort(request: admin_pb2.AbortRoomRequest, channel: grpc.aio.Channel) -> admin_pb2.AbortRoomResponse | None:
    """What a process answers; None: it has no such room."""
    try:
        answer: admin_pb2.AbortRoomResponse = await _admin("AbortRoom", request, channel)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return None
    return answer


async def _own_trace(request: trace_pb2.GetTraceRequest, channel: grpc.aio.Channel) -> trace_pb2.GetTraceResponse:
    stub: Any = trace_pb2_grpc.TraceServiceStub(channel)
    answer: trace_pb2.GetTraceResponse = await stub.GetTrace(request, timeout=TIMEOUT_S)
    return answer


async def _set_level(request: control_pb2.SetLogLevelRequest, channel: grpc.aio.Channel) -> None:
    stub: Any = control_pb2_grpc.ControlServiceStub(channel)
    await stub.SetLogLevel(request, timeout=TIMEOUT_S, metadata=metadata())
