"""BootstrapService: messages in, calls of the store, messages out. See protos/tandem/v1/bootstrap.proto."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any, Final, TypeAlias

import grpc

from tandem.bootstrap.store import Store
from tandem.core.admission import check_protocol
from tandem.core.cluster import Joined
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import WorkerId
from tandem.core.registry import Change
from tandem.core.version import CURRENT
from tandem.rpc import convert
from tandem.rpc.operators import changed
from tandem.v1 import bootstrap_pb2 as pb
from tandem.v1 import bootstrap_pb2_grpc

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["BootstrapService"].full_name

MAX_INFO_BYTES: Final = 4096
"""Longest WorkerInfo: a snapshot of as many workers as settings allow stays under 1 MiB."""

_MARKS: Final = {True: "draining", False: "takes rooms"}

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class BootstrapServicer(bootstrap_pb2_grpc.BootstrapServiceServicer):
    """Stateless; TandemErrors become statuses in tandem.rpc.interceptors."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def Register(self, request: pb.RegisterRequest, context: Context) -> pb.RegisterResponse:  # noqa: N802
        """Adds a worker or renews a known life of it."""
        _check_size(request)
        info = convert.worker_info_from_proto(request.info)
        incarnation = await self._store.register(info, request.instance_id)
        return pb.RegisterResponse(
            incarnation=incarnation,
            lease_ttl_ms=self._store.lease_ttl_ms,
            version=convert.protocol_to_proto(CURRENT),
        )

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatResponse:  # noqa: N802
        """Renews the lease."""
        draining = await self._store.heartbeat(convert.life_from_proto(request.worker))
        return pb.HeartbeatResponse(lease_ttl_ms=self._store.lease_ttl_ms, draining=draining)

    async def Deregister(self, request: pb.DeregisterRequest, context: Context) -> pb.DeregisterResponse:  # noqa: N802
        """Removes a worker."""
        await self._store.deregister(convert.life_from_proto(request.worker))
        return pb.DeregisterResponse()

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:  # noqa: N802
        """A snapshot, then deltas."""
        check_protocol(convert.protocol_from_proto(request.version), "the watcher")
        with closing(await self._store.subscribe()) as subscription:
            workers = [convert.worker_info_to_proto(info) for info in subscription.snapshot.workers]
            yield self._message(subscription.snapshot.revision, snapshot=pb.WorkerSnapshot(workers=workers))
            async for change in subscription.changes():
                yield self._delta(change)

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersResponse:  # noqa: N802
        """The workers of this moment."""
        snapshot = await self._store.read()
        workers = [convert.worker_info_to_proto(info) for info in snapshot.workers]
        return pb.ListWorkersResponse(workers=workers, revision=snapshot.revision)

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:  # noqa: N802
        """Marks a worker as draining."""
        await self._mark(WorkerId(request.worker_id), draining=True)
        return pb.DrainResponse()

    async def Undrain(self, request: pb.UndrainRequest, context: Context) -> pb.UndrainResponse:  # noqa: N802
        """Takes a drain back."""
        await self._mark(WorkerId(request.worker_id), draining=False)
        return pb.UndrainResponse()

    async def _mark(self, worker_id: WorkerId, *, draining: bool) -> None:
        before = {info.worker_id: info.draining for info in (await self._store.read()).workers}
        await self._store.set_draining(worker_id, draining)
        changed(f"worker {worker_id}", _MARKS[before.get(worker_id, False)], _MARKS[draining])

    def _delta(self, change: Change) -> pb.WatchResponse:
        if isinstance(change.event, Joined):
            return self._message(change.revision, joined=convert.worker_info_to_proto(change.event.info))
        left = pb.WorkerLeft(
            worker=convert.life_to_proto(change.event.life),
            reason=convert.leave_reason_to_proto(change.event.reason),
        )
        return self._message(change.revision, left=left)

    def _message(
        self,
        revision: int,
        *,
        snapshot: pb.WorkerSnapshot | None = None,
        joined: pb.WorkerInfo | None = None,
        left: pb.WorkerLeft | None = None,
    ) -> pb.WatchResponse:
        return pb.WatchResponse(
            store_incarnation=self._store.incarnation,
            revision=revision,
            lease_ttl_ms=self._store.lease_ttl_ms,
            snapshot=snapshot,
            joined=joined,
            left=left,
        )


def _check_size(request: pb.RegisterRequest) -> None:
    size = request.info.ByteSize()
    if size > MAX_INFO_BYTES:
        text = f"info is {size} bytes long, allowed: 1..{MAX_INFO_BYTES} bytes; give fewer or shorter models"
        raise TandemError(ErrorReason.INVALID_ARGUMENT, text, field="info")
