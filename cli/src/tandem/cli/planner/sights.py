"""Messages of AdminService.WatchCluster, as a planner reads them: those of all gateways as one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Sight:
    """The cluster at one moment."""

    workers: Sequence[WorkerSight] = ()
    """Those that a gateway reaches, and that have said something of themselves."""
    traffic: Traffic = field(default_factory=Traffic)
    """What all gateways have counted."""
    busy: frozenset[WorkerId] = frozenset()
    """Workers that have something to do, for whichever gateway."""


class Gateways:
    """What each of them has said last."""

    def __init__(self, addresses: Iterable[str]) -> None:
        """addresses: of all whose clients the workers serve, at least one."""
        self._addresses = frozenset(addresses)
        self._latest: dict[str, admin_pb2.WatchClusterResponse] = {}
        """The last to speak comes last."""
        self._new: set[str] = set()
        """Who has spoken since the last sight."""

    def take(self, address: str, message: admin_pb2.WatchClusterResponse) -> Sight | None:
        """One message. The cluster once every gateway has spoken since the sight before, so as often as one says
        something; None until then: what the others are asked is not known."""
        self._latest.pop(address, None)
        self._latest[address] = message
        self._new.add(address)
        if self._new != self._addresses:
            return None
        self._new.clear()
        return sight(list(self._latest.values()))

    def lost(self, address: str) -> None:
        """One is not heard any more."""
        self._latest.pop(address, None)
        self._new.discard(address)


def sight(messages: Sequence[admin_pb2.WatchClusterResponse]) -> Sight:
    """Of one message of each gateway, the latest last. Requests are each gateway's own and add up; what a worker says
    of itself all of them bring, and it counts once."""
    numbers = [one for message in messages for one in message.workers]
    workers = {one.worker.worker_id: _worker(one) for one in numbers if one.up and one.known and one.role in _ROLES}
    busy = (WorkerId(one.worker.worker_id) for one in numbers if one.in_flight or one.running or one.waiting)
    return Sight(list(workers.values()), _traffic(messages), frozenset(busy))


def _traffic(messages: Iterable[admin_pb2.WatchClusterResponse]) -> Traffic:
    counts = [(one.asked, one.prompt_tokens, one.first_tokens, one.completion_tokens, one.waiting) for one in messages]
    return Traffic(*map(sum, zip(*counts, strict=True)))


def _worker(one: admin_pb2.WorkerNumbers) -> WorkerSight:
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
