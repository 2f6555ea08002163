"""AdminService: what an operator may ask of a running gateway."""

from __future__ import annotations

from typing import Any

import grpc

from tandem.core.ids import WorkerId
from tandem.core.policies import policy_named
from tandem.gateway.pool import SessionPool
from tandem.gateway.router import Router
from tandem.rpc import convert
from tandem.v1 import admin_pb2, admin_pb2_grpc, bootstrap_pb2, bootstrap_pb2_grpc

_Context = grpc.aio.ServicerContext[Any, Any]
BOOTSTRAP_TIMEOUT_S = 5.0


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Shows what the gateway sees, and steers it."""

    def __init__(self, pool: SessionPool, router: Router, bootstrap: grpc.aio.Channel) -> None:
        """bootstrap: stays the caller's."""
        self._pool = pool
        self._router = router
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
            bootstrap_pb2.DrainRequest(worker_id=request.worker_id), timeout=BOOTSTRAP_TIMEOUT_S
        )
        return admin_pb2.DrainWorkerResponse()

    async def UndrainWorker(  # noqa: N802
        self, request: admin_pb2.UndrainWorkerRequest, context: _Context
    ) -> admin_pb2.UndrainWorkerResponse:
        """Passes the wish on to bootstrap, whose error is passed back."""
        del context
        await self._bootstrap.Undrain(
            bootstrap_pb2.UndrainRequest(worker_id=request.worker_id), timeout=BOOTSTRAP_TIMEOUT_S
        )
        return admin_pb2.UndrainWorkerResponse()
