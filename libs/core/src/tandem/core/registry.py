"""The registry of workers: leases, lives and revisions. Pure: the time is an input, events come out.

A life of a worker is named by its instance_id, which the process draws, and by its incarnation,
which the registry issues. Registering again as the same instance keeps the incarnation, after a
restart of the registry too, because the worker brings it along. Another instance is a new life: it
replaces the old one at once, and from then on nothing of the old life is accepted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from tandem.core.admission import check_fit, check_protocol, check_worker, check_worker_id
from tandem.core.cluster import Event, Joined, LeaveReason, Left, WorkerInfo
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Incarnation, WorkerId, WorkerLife

REMEMBERED_INSTANCES: Final = 8
"""Replaced lives of one worker that are known by their instance_id."""

REMEMBERED_WORKERS_FACTOR: Final = 4
"""Workers that have left, but whose past is known, per worker that may be registered."""


@dataclass(frozen=True, slots=True)
class RegistryLimits:
    """Bounds of one registry."""

    lease_ttl_ms: int = 1500
    grace_ms: int = 500
    """A lease ends this long after its TTL. When the shell was held up, and so could not read the
    heartbeats that had come in time, it has this long to do so."""
    max_workers: int = 1024


@dataclass(frozen=True, slots=True)
class Change:
    """One event and the revision that it made."""

    revision: int
    event: Event


@dataclass(slots=True)
class _Entry:
    info: WorkerInfo
    instance_id: bytes
    deadline: float


@dataclass(slots=True)
class _Past:
    """What is known of a worker whether it is registered or not."""

    incarnation: Incarnation
    """Greatest one that it had."""
    replaced: tuple[bytes, ...] = ()
    """Instances that a newer life has replaced, oldest first."""


class Registry:
    """Who is registered. Every change is handed to `emit`, in order, revisions without gaps."""

    def __init__(self, limits: RegistryLimits, emit: Callable[[Change], None]) -> None:
        self._limits = limits
        self._emit = emit
        self._entries: dict[WorkerId, _Entry] = {}
        self._past: OrderedDict[WorkerId, _Past] = OrderedDict()
        self._revision = 0
        self._last_issued = 0

    @property
    def revision(self) -> int:
        """Rises by one with every change."""
        return self._revision

    @property
    def lease_ttl_ms(self) -> int:
        """Time without a heartbeat after which a worker has lost its lease."""
        return self._limits.lease_ttl_ms

    def workers(self) -> tuple[WorkerInfo, ...]:
        """Every worker, in order of id."""
        return tuple(self._entries[worker_id].info for worker_id in sorted(self._entries))

    def register(self, info: WorkerInfo, instance_id: bytes, now: float, wall_ms: int) -> Incarnation:
        """Adds a worker, or renews one, and returns the incarnation of its life.

        now: monotonic seconds. wall_ms: milliseconds since 1970; new incarnations are no smaller, so
        that they rise over restarts of the registry.
        Raises INVALID_ARGUMENT, VERSION_MISMATCH, LAYOUT_MISMATCH, STALE_INCARNATION for a life that
        a newer one has replaced, OVERLOADED when there are too many workers.
        """
        check_protocol(info.protocol, info.worker_id)
        check_worker(info, instance_id)
        self._refuse_stale(info.life, instance_id)
        check_fit(info, (entry.info for entry in self._entries.values()))
        entry = self._entries.get(info.worker_id)
        if entry is None and len(self._entries) >= self._limits.max_workers:
            raise TandemError(ErrorReason.OVERLOADED, f"{self._limits.max_workers} workers are registered already")

        known = entry is not None and entry.instance_id == instance_id
        incarnation = entry.info.life.incarnation if entry and known else info.life.incarnation
        draining = entry.info.draining if entry and known else info.draining and incarnation != 0
        life = WorkerLife(info.worker_id, incarnation or self._issue(wall_ms))
        info = replace(info, life=life, draining=draining)
        if entry and not known:
            self._leave(entry, LeaveReason.REPLACED)
        self._remember(life)
        self._entries[life.worker_id] = _Entry(info, instance_id, self._deadline(now))
        if entry is None or entry.info != info:
            self._change(Joined(info))
        return life.incarnation

    def heartbeat(self, life: WorkerLife, now: float) -> bool:
        """Renews a lease; returns whether the worker is marked as draining.

        Raises NOT_REGISTERED (register again) or STALE_INCARNATION.
        """
        entry = self._entry_of(life)
        entry.deadline = self._deadline(now)
        return entry.info.draining

    def deregister(self, life: WorkerLife) -> None:
        """Removes a worker; one that is not registered is removed already. Raises STALE_INCARNATION."""
        try:
            entry = self._entry_of(life)
        except TandemError as error:
            if error.reason is ErrorReason.NOT_REGISTERED:
                return
            raise
        self._leave(entry, LeaveReason.DEREGISTERED)

    def set_draining(self, worker_id: WorkerId, draining: bool) -> None:
        """Marks a worker, or takes the mark back. Raises UNKNOWN_WORKER, or INVALID_ARGUMENT for an impossible name."""
        check_worker_id(worker_id, "worker_id")
        entry = self._entries.get(worker_id)
        if entry is None:
            raise TandemError(ErrorReason.UNKNOWN_WORKER, f"no worker {worker_id} is registered", field="worker_id")
        if entry.info.draining is not draining:
            entry.info = replace(entry.info, draining=draining)
            self._change(Joined(entry.info))

    def next_deadline(self) -> float | None:
        """When the first lease runs out, in monotonic seconds; None without workers.

        Call `expire` after the grace that follows it.
        """
        return min((entry.deadline for entry in self._entries.values()), default=None)

    def expire(self, now: float) -> None:
        """Removes the workers whose lease, and the grace after it, are over."""
        over = now - self._limits.grace_ms / 1000
        for entry in [entry for entry in self._entries.values() if entry.deadline <= over]:
            self._leave(entry, LeaveReason.EXPIRED)

    def _deadline(self, now: float) -> float:
        return now + self._limits.lease_ttl_ms / 1000

    def _issue(self, wall_ms: int) -> Incarnation:
        self._last_issued = max(self._last_issued + 1, wall_ms)
        return Incarnation(self._last_issued)

    def _refuse_stale(self, life: WorkerLife, instance_id: bytes) -> None:
        past = self._past.get(life.worker_id)
        if past is None:
            return
        if instance_id in past.replaced or 0 < life.incarnation < past.incarnation:
            raise _stale(life, past.incarnation)
        entry = self._entries.get(life.worker_id)
        if entry and entry.instance_id != instance_id and life.incarnation == past.incarnation:
            raise _stale(life, past.incarnation)

    def _entry_of(self, life: WorkerLife) -> _Entry:
        check_worker_id(life.worker_id)
        past = self._past.get(life.worker_id)
        if past is not None and life.incarnation < past.incarnation:
            raise _stale(life, past.incarnation)
        entry = self._entries.get(life.worker_id)
        if entry is None or entry.info.life != life:
            raise TandemError(ErrorReason.NOT_REGISTERED, f"{life} is not registered; register again")
        return entry

    def _remember(self, life: WorkerLife) -> None:
        past = self._past.setdefault(life.worker_id, _Past(life.incarnation))
        past.incarnation = max(past.incarnation, life.incarnation)
        self._last_issued = max(self._last_issued, life.incarnation)
        self._past.move_to_end(life.worker_id)
        # The least recently registered is forgotten first; never one that is registered.
        bound = REMEMBERED_WORKERS_FACTOR * self._limits.max_workers
        for worker_id in list(self._past)[: max(0, len(self._past) - bound)]:
            if worker_id not in self._entries:
                del self._past[worker_id]

    def _leave(self, entry: _Entry, reason: LeaveReason) -> None:
        life = entry.info.life
        del self._entries[life.worker_id]
        if reason is LeaveReason.REPLACED:
            past = self._past[life.worker_id]
            past.replaced = (*past.replaced, entry.instance_id)[-REMEMBERED_INSTANCES:]
        self._change(Left(life, reason))

    def _change(self, event: Event) -> None:
        self._revision += 1
        self._emit(Change(self._revision, event))


def _stale(life: WorkerLife, newest: Incarnation) -> TandemError:
    text = f"{life} is over: incarnation {newest} of {life.worker_id} has been registered"
    return TandemError(ErrorReason.STALE_INCARNATION, text)
