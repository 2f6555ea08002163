"""Messages of AdminService.WatchCluster, as a planner reads them. Pure."""

from __future__ import annotations

from typing import Final

from tandem.core.ids import Role, WorkerId
from tandem.core.planner.demand import Traffic
from tandem.core.planner.loads import WorkerSight
from tandem.v1 import admin_pb2, common_pb2

_ROLES: Final = {
    common_pb2.ROLE_PREFILL: Role.PREFILL,
    common_pb2.ROLE_DECODE: Role.DECODE,
    common_pb2.ROLE_UNIFIED: Role.UNIFIED,
}


def sights(message: admin_pb2.WatchClusterResponse) -> list[WorkerSight]:
    """The workers that the gateway reaches, and that have said something of themselves."""
    return [_sight(one) for one in message.workers if one.up and one.known and one.role in _ROLES]


def traffic(message: admin_pb2.WatchClusterResponse) -> Traffic:
    """What the gateway has counted."""
    return Traffic(
        message.asked, message.prompt_tokens, message.first_tokens, message.completion_tokens, message.waiting
    )


def idle(message: admin_pb2.WatchClusterResponse, worker_id: WorkerId) -> bool:
    """Whether a worker has nothing to do, or is gone."""
    return not any(
        one.in_flight or one.running or one.waiting for one in message.workers if one.worker.worker_id == worker_id
    )


def _sight(one: admin_pb2.WorkerNumbers) -> WorkerSight:
    return WorkerSight(
        WorkerId(one.worker.worker_id),
        _ROLES[one.role],
        max(1, one.max_running),
        one.running,
        one.waiting,
        one.pages_total,
        max(0, one.pages_total - one.pages_free - one.pages_granted),
        one.draining,
    )
