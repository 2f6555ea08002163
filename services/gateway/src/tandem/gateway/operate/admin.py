"""AdminService: what an operator may ask of a running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc

from tandem.core.ids import Role, RoomId, WorkerId
from tandem.core.policies import policy_named
from tandem.gateway.gateway_metrics import GatewayMetrics
from tandem.gateway.operate import cluster_view
from tandem.gateway.operate.cluster_traces import ClusterTraces
from tandem.gateway.operate.pace import Watchers
from tandem.gateway.routing.pool import SessionPool
from tandem.gateway.routing.rooms import RoomBook
from tandem.gateway.routing.router import Router
from tandem.rpc import convert
from tandem.rpc.operators import changed
from tandem.rpc.telemetry import metadata
from tandem.v1 import admin_pb2, admin_pb2_grpc, bootstrap_pb2, bootstrap_pb2_grpc, trace_pb2

_Context = grpc.aio.ServicerContext[Any, Any]
BOOTSTRAP_TIMEOUT_S = 5.0


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Shows what the gateway sees, and steers it."""

    def __init__(
        self,
        pool: SessionPool,
        router: Router,
        bootstrap: grpc.aio.Channel,
        rooms: RoomBook,
        metrics: GatewayMetrics,
        traces: ClusterTraces,
        waiting: Callable[[], int] = lambda: 0,
    ) -> None:
        """bootstrap: stays the caller's. rooms: the router's. waiting: requests that no worker has yet."""
        self._pool = pool
        self._router = router
        self._rooms = rooms
        self._metrics = metrics
        self._traces = traces
        self._waiting = waiting
        self._watchers = Watchers()
        self._bootstrap: Any = bootstrap_pb2_grpc.BootstrapServiceStub(bootstrap)

    async def ListClusterWorkers(  # noqa: N802 - the name is the contract's
        self, request: admin_pb2.ListClusterWorkersRequest, context: _Context
    ) -> admin_pb2.ListClusterWorkersResponse:
        """Workers in the gateway's view, in order of id."""
        del request, context
        workers = self._pool.view.workers.items()
        return admin_pb2.ListClusterWorkersResponse(
            workers=[cluster_view.cluster_worker(info, self._reach(worker_id)) for worker_id, info in workers]
        )

    async def SetPolicy(  # noqa: N802
        self, request: admin_pb2.SetPolicyRequest, context: _Context
    ) -> admin_pb2.SetPolicyResponse:
        """Swaps the policy of one role, or of all."""
        del context
        policy, before = policy_named(request.policy), self._router.policies
        role = convert.role_from_proto(request.role) if request.role else None
        self._router.set_policy(policy, role)
        for each in Role if role is None else (role,):
            changed(f"policy of {each.value}", before[each].value, policy.value)
        return admin_pb2.SetPolicyResponse(
            previous=before[role or Role.DECODE].value,
            prefill_before=before[Role.PREFILL].value,
            decode_before=before[Role.DECODE].value,
            unified_before=before[Role.UNIFIED].value,
        )

    async def DrainWorker(  # noqa: N802
        self, request: admin_pb2.DrainWorkerRequest, context: _Context
    ) -> admin_pb2.DrainWorkerResponse:
        """Passes the wish on to bootstrap, whose error is passed back."""
        del context
        before = self._drained(request.worker_id)
        await self._bootstrap.Drain(
            bootstrap_pb2.DrainRequest(worker_id=request.worker_id), timeout=BOOTSTRAP_TIMEOUT_S, metadata=metadata()
        )
        changed(f"worker {request.worker_id}", before, "draining")
        return admin_pb2.DrainWorkerResponse()

    async def UndrainWorker(  # noqa: N802
        self, request: admin_pb2.UndrainWorkerRequest, context: _Context
    ) -> admin_pb2.UndrainWorkerResponse:
        """Passes the wish on to bootstrap, whose error is passed back."""
        del context
        before = self._drained(request.worker_id)
        await self._bootstrap.Undrain(
            bootstrap_pb2.UndrainRequest(worker_id=request.worker_id), timeout=BOOTSTRAP_TIMEOUT_S, metadata=metadata()
        )
        changed(f"worker {request.worker_id}", before, "takes rooms")
        return admin_pb2.UndrainWorkerResponse()

    async def GetTrace(  # noqa: N802
        self, request: admin_pb2.AdminGetTraceRequest, context: _Context
    ) -> admin_pb2.AdminGetTraceResponse:
        """One trace, of the gateway and of every worker in its view."""
        del context
        asked = trace_pb2.GetTraceRequest()
        if request.WhichOneof("key") == "request_id":
            asked.request_id = request.request_id
        elif request.WhichOneof("key") == "trace_id":
            asked.trace_id = request.trace_id
        return await self._traces.gather(asked)

    async def ListRooms(  # noqa: N802
        self, request: admin_pb2.ListRoomsRequest, context: _Context
    ) -> admin_pb2.ListRoomsResponse:
        """A page of the rooms that have not ended."""
        del context
        page = self._rooms.page(request.after, request.page_size)
        return cluster_view.rooms_page(page, asyncio.get_running_loop().time())

    async def AbortRoom(  # noqa: N802
        self, request: admin_pb2.AbortRoomRequest, context: _Context
    ) -> admin_pb2.AbortRoomResponse:
        """Ends a room on both legs."""
        del context
        room = RoomId(request.room)
        message = cluster_view.room_message(self._rooms.find(room), asyncio.get_running_loop().time())
        self._rooms.abort(room)
        phase = admin_pb2.RoomPhase.Name(message.phase).removeprefix("ROOM_PHASE_").lower()
        changed(f"room {room} of request {message.request_id}", phase, "cancelled")
        return admin_pb2.AbortRoomResponse(room=message)

    async def WatchCluster(  # noqa: N802
        self, request: admin_pb2.WatchClusterRequest, context: _Context
    ) -> AsyncIterator[admin_pb2.WatchClusterResponse]:
        """The cluster in numbers, at an even pace."""
        del context
        async with aclosing(self._watchers.paced(request.interval_ms)) as times:
            async for at_ms in times:
                yield self._numbers(at_ms)

    def _numbers(self, at_ms: int) -> admin_pb2.WatchClusterResponse:
        totals = cluster_view.totals_of(self._metrics)
        phases, policies = self._rooms.phases(), self._router.policies
        return cluster_view.cluster_numbers(
            at_ms, self._pool.view, self._reach, phases, totals, policies, self._waiting()
        )

    def _reach(self, worker_id: WorkerId) -> cluster_view.Reach:
        member = self._pool.member_of(worker_id)
        if member is None:
            return cluster_view.Reach(up=False, in_flight=0, status=None)
        session, status = member
        latest = status.latest if session.up else None
        return cluster_view.Reach(session.up, session.in_flight, latest, self._router.breaker_of(session.life))

    def _drained(self, worker_id: str) -> str:
        info = self._pool.view.workers.get(WorkerId(worker_id))
        return "draining" if info is not None and info.draining else "takes rooms"
