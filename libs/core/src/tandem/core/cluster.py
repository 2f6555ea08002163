"""Who is in the cluster, as a gateway or a worker sees it.

A ClusterView is a value: every change makes a new one. It is built from the snapshot and the deltas
of BootstrapService.Watch, and `differences` tells what two views have between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

from tandem.core.ids import RankId, Role, WorkerId, WorkerLife, can_serve
from tandem.core.layout import KvLayout
from tandem.core.version import Protocol


@dataclass(frozen=True, slots=True)
class RankEndpoint:
    """Where one engine rank can be reached."""

    rank: RankId
    kv_link_address: str
    """host:port; empty on decode ranks, which dial and never listen, and on unified ones."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker tells of itself; fields and ranges as in tandem/v1/bootstrap.proto."""

    life: WorkerLife
    role: Role
    models: tuple[str, ...]
    address: str
    layout: KvLayout
    ranks: tuple[RankEndpoint, ...]
    context_tokens: int
    max_running: int
    total_pages: int
    protocol: Protocol
    draining: bool = False
    tokenizer_path: str = ""

    @property
    def worker_id(self) -> WorkerId:
        """The worker's stable name."""
        return self.life.worker_id

    @property
    def dp_size(self) -> int:
        """Data parallel size."""
        return 1 + max((endpoint.rank.dp for endpoint in self.ranks), default=0)


class LeaveReason(Enum):
    """Why a worker left."""

    DEREGISTERED = "deregistered"
    EXPIRED = "expired"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker that joined, or changed."""

    info: WorkerInfo


@dataclass(frozen=True, slots=True)
class Left:
    """A life that ended."""

    life: WorkerLife
    reason: LeaveReason


Event = Joined | Left


def _freeze(workers: Iterable[WorkerInfo]) -> Mapping[WorkerId, WorkerInfo]:
    return MappingProxyType({info.worker_id: info for info in sorted(workers, key=lambda info: info.worker_id)})


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The workers of one moment, by id and in order of id."""

    store_incarnation: int = 0
    """Life of the store that the view was read from; 0 = never read one."""
    revision: int = 0
    workers: Mapping[WorkerId, WorkerInfo] = field(default_factory=lambda: _freeze(()))
    carried: frozenset[WorkerId] = frozenset()
    """Workers known from an earlier life of the store, which this one has not confirmed yet."""

    def with_snapshot(self, store_incarnation: int, revision: int, workers: Iterable[WorkerInfo]) -> ClusterView:
        """Starts over from a snapshot.

        Workers that are missing from the snapshot of another life of the store are carried: they
        have had no time to register again. `without_carried` drops those that never did.
        """
        fresh = {info.worker_id: info for info in workers}
        kept: dict[WorkerId, WorkerInfo] = {}
        if self.store_incarnation not in (0, store_incarnation):
            kept = {worker_id: info for worker_id, info in self.workers.items() if worker_id not in fresh}
        return ClusterView(store_incarnation, revision, _freeze([*fresh.values(), *kept.values()]), frozenset(kept))

    def follows(self, store_incarnation: int, revision: int) -> bool:
        """Whether a delta comes right after this view. If not, the watcher must start over."""
        return store_incarnation == self.store_incarnation and revision == self.revision + 1

    def with_event(self, revision: int, event: Event) -> ClusterView:
        """The view after a delta that `follows` it. A Left of a life that is not in it changes no worker."""
        workers = dict(self.workers)
        if isinstance(event, Joined):
            worker_id = event.info.worker_id
            workers[worker_id] = event.info
        else:
            worker_id = event.life.worker_id
            if worker_id in workers and workers[worker_id].life == event.life:
                del workers[worker_id]
        return ClusterView(self.store_incarnation, revision, _freeze(workers.values()), self.carried - {worker_id})

    def without_carried(self) -> ClusterView:
        """The view after a while without word of the carried workers."""
        workers = [info for worker_id, info in self.workers.items() if worker_id not in self.carried]
        return replace(self, workers=_freeze(workers), carried=frozenset())

    def emptied(self) -> ClusterView:
        """The view after the store has been out of reach for a while."""
        return replace(self, workers=_freeze(()), carried=frozenset())

    def find(self, life: WorkerLife) -> WorkerInfo | None:
        """The worker, if this very life of it is here."""
        info = self.workers.get(life.worker_id)
        return info if info is not None and info.life == life else None

    def of_role(self, role: Role) -> tuple[WorkerInfo, ...]:
        """Every worker of a role, draining ones too, in order of id."""
        return tuple(info for info in self.workers.values() if info.role is role)

    def routable(self, role: Role, model: str) -> tuple[WorkerInfo, ...]:
        """Workers that may get new rooms of a model: of this role, serving it, not draining."""
        return tuple(info for info in self.of_role(role) if model in info.models and not info.draining)

    @property
    def models(self) -> tuple[str, ...]:
        """Models that have workers which can serve a new room together, in order of name."""
        names = {model for info in self.workers.values() for model in info.models}
        return tuple(sorted(model for model in names if self.serves(model)))

    def serves(self, model: str) -> bool:
        """Whether there are workers which can serve a new room of a model together."""
        return can_serve(lambda role: self.routable(role, model))


@dataclass(frozen=True, slots=True)
class Differences:
    """What lies between two views, each in order of worker id."""

    joined: tuple[WorkerInfo, ...]
    """New lives."""
    left: tuple[WorkerLife, ...]
    """Lives that are gone, those that a newer life replaced too."""
    changed: tuple[WorkerInfo, ...]
    """The same life, with other facts, such as draining."""


def differences(before: ClusterView, after: ClusterView) -> Differences:
    """Tells what happened between two views."""
    old = {info.life: info for info in before.workers.values()}
    new = {info.life: info for info in after.workers.values()}
    return Differences(
        joined=tuple(info for life, info in new.items() if life not in old),
        left=tuple(life for life in old if life not in new),
        changed=tuple(info for life, info in new.items() if life in old and old[life] != info),
    )
