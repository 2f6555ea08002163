"""AdminService: what an operator may ask of a running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from tandem.core.cluster import WorkerInfo
from tandem.core.ids import WorkerId
from tandem.core.policies import policy_named
from tandem.gateway.pool import SessionPool
from tandem.gateway.router import Router
from tandem.rpc import convert
from tandem.rpc.telemetry import metadata
from tandem.rpc.tracing.provider import Tracing
from tandem.rpc.tracing.service import kept_trace, that_fit
from tandem.v1 import admin_pb2, admin_pb2_grpc, bootstrap_pb2, bootstrap_pb2_grpc, trace_pb2, trace_pb2_grpc

_Context = grpc.aio.ServicerContext[Any, Any]
BOOTSTRAP_TIMEOUT_S = 5.0
TRACE_TIMEOUT_S = 2.0
"""A worker that has not shown its spans by then is named as silent."""


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Shows what the gateway sees, and steers it."""

    def __init__(
        self,
        pool: SessionPool,
        router: Router,
        bootstrap: grpc.aio.Channel,
        tracing: Tracing,
        connect: Callable[[str], grpc.aio.Channel],
    ) -> None:
        """bootstrap: stays the caller's. connect: opens a channel to host:port."""
        self._pool = pool
        self._router = router
        self._tracing = tracing
        self._connect = connect
        self._bootstrap: Any = bootstrap_pb2_grpc.BootstrapServiceStub(bootstrap)

    async def ListClusterWorkers(  # noqa: N802 - the name is the contract's
        self, request: admin_pb2.ListClusterWorkersRequest, context: _Context
    ) -> admin_pb2.ListClusterWorkersResponse:
        """Workers in the gateway's view, in order of id."""
        del request, context
        response = admin_pb2.ListClusterWorkersResponse()
        for worker_id, info in self._pool.view.workers.items():
            worker = response.workers.add(info=convert.worker_info_to_proto(info))
            member = self._pool.member_of(WorkerId(worker_id))
            if member is not None:
                session, status = member
                worker.in_flight = session.in_flight
                if session.up and status.latest is not None:
                    worker.status.CopyFrom(status.latest)
        return response

    async def SetPolicy(  # noqa: N802
        self, request: admin_pb2.SetPolicyRequest, context: _Context
    ) -> admin_pb2.SetPolicyResponse:
        """Swaps the policy of both roles."""
        del context
        previous = self._router.set_policy(policy_named(request.policy))
        return admin_pb2.SetPolicyResponse(previous=previous.value)

    async def DrainWorker(  # noqa: N802
        self, request: admin_pb2.DrainWorkerRequest, context: _Context
    ) -> admin_pb2.DrainWorkerResponse:
        """Passes the wish on to bootstrap, whose error is passed back."""
        del context
        await self._bootstrap.Drain(
            bootstrap_pb2.DrainRequest(worker_id=request.worker_id), timeout=BOOTSTRAP_TIMEOUT_S, metadata=metadata()
        )
        return admin_pb2.DrainWorkerResponse()

    async def UndrainWorker(  # noqa: N802
        self, request: admin_pb2.UndrainWorkerRequest, context: _Context
    ) -> admin_pb2.UndrainWorkerResponse:
        """Passes the wish on to bootstrap, whose error is passed back."""
        del context
        await self._bootstrap.Undrain(
            bootstrap_pb2.UndrainRequest(worker_id=request.worker_id), timeout=BOOTSTRAP_TIMEOUT_S, metadata=metadata()
        )
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
        own = kept_trace(self._tracing, asked)
        workers = self._pool.view.workers
        answers = await asyncio.gather(*(self._trace_of(info, asked) for info in workers.values()))
        told = [own, *(answer for answer in answers if isinstance(answer, trace_pb2.GetTraceResponse))]
        spans = [span for answer in told for span in answer.spans]
        fitting = that_fit(spans)
        return admin_pb2.AdminGetTraceResponse(
            trace_id=next((answer.trace_id for answer in told if answer.trace_id), ""),
            spans=fitting,
            dropped_spans=sum(answer.dropped_spans for answer in told) + len(spans) - len(fitting),
            silent=[
                admin_pb2.SilentWorker(worker_id=worker_id, problem=answer)
                for worker_id, answer in zip(workers, answers, strict=True)
                if isinstance(answer, str)
            ],
        )

    async def _trace_of(self, info: WorkerInfo, asked: trace_pb2.GetTraceRequest) -> trace_pb2.GetTraceResponse | str:
        """What a worker keeps of a trace, or what was wrong."""
        async with self._connect(info.address) as channel:
            stub: Any = trace_pb2_grpc.TraceServiceStub(channel)
            try:
                answer: trace_pb2.GetTraceResponse = await stub.GetTrace(asked, timeout=TRACE_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {error.details()}"
            return answer
