"""How full the workers of each role are, by what they say of themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tandem.core.ids import Role, WorkerId


@dataclass(frozen=True, slots=True)
class WorkerSight:
    """One worker at one moment."""

    worker_id: WorkerId
    role: Role
    max_running: int
    """Sequences that it runs at the same time, at least 1."""
    running: int = 0
    waiting: int = 0
    """Sequences that it has and that do not run."""
    pages: int = 0
    """Of its KV pool; 0 = unknown."""
    pages_held: int = 0
    """Those of sequences whose KV is there; what is only granted or cached is not held."""
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Comfort:
    """What a worker does well at the same time; with as much of it, it is full."""

    sequences: int = 0
    """Of a worker that decodes; 0 = as many as it runs."""


@dataclass(frozen=True, slots=True)
class RoleLoad:
    """The workers of one role."""

    workers: int
    """That take rooms."""
    demand: float
    """How many of them the load would fill, at least 0."""
    running: int = 0
    waiting: int = 0
    backlog: int = 0
    """Requests that wait for a worker of the role, and are with one."""

    @property
    def pressure(self) -> float:
        """Demand per worker: 1 = all of them are full."""
        return self.demand / self.workers if self.workers else 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at one moment."""

    at_s: float
    """Monotonic seconds."""
    roles: Mapping[Role, RoleLoad]
    """Of the roles that have workers."""


def snapshot(at_s: float, sights: Iterable[WorkerSight], comfort: Comfort) -> Snapshot:
    """Adds up."""
    by_role: dict[Role, list[WorkerSight]] = {}
    for sight in sights:
        if not sight.draining:
            by_role.setdefault(sight.role, []).append(sight)
    prompts = sum(one.running + one.waiting for one in by_role.get(Role.PREFILL, ()))
    return Snapshot(at_s, {role: _load(role, workers, prompts, comfort) for role, workers in by_role.items()})


def _load(role: Role, workers: Sequence[WorkerSight], prompts: int, comfort: Comfort) -> RoleLoad:
    """prompts: that prefill has; decode has them, too, as sequences that wait."""
    demand = sum(load_of(worker, comfort) for worker in workers)
    running, waiting = sum(one.running for one in workers), sum(one.waiting for one in workers)
    backlog = 0
    if role is Role.PREFILL:
        backlog = sum(max(0, one.running + one.waiting - 1) for one in workers)
    elif role is Role.DECODE:
        backlog = max(0, running + waiting - prompts - sum(one.max_running for one in workers))
    return RoleLoad(len(workers), demand, running, waiting, backlog)


def load_of(worker: WorkerSight, comfort: Comfort) -> float:
    """How full a worker is; 1 = full.

    Prefill with any prompt is busy, and so the mean over time is the share of it in which it computes: this much less
    work it can lose before it waits for some. Decode is as full as its batch or its pages. What waits for decode's
    pages, or for prefill, is not its load but the other one's.
    """
    if worker.role is Role.PREFILL:
        return 1.0 if worker.running + worker.waiting else 0.0
    batch = worker.running + (worker.waiting if worker.role is Role.UNIFIED else 0)
    held = worker.pages_held / worker.pages if worker.pages else 0.0
    return max(batch / (comfort.sequences or worker.max_running), held)


def leaver(sights: Iterable[WorkerSight], role: Role) -> WorkerId | None:
    """Who leaves a role: the one with the highest number in its name, as container managers take theirs away."""
    names = [sight.worker_id for sight in sights if sight.role is role and not sight.draining]
    return max(names, key=_in_order, default=None)


def _in_order(name: str) -> list[tuple[int, str]]:
    """worker-10 comes after worker-9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
