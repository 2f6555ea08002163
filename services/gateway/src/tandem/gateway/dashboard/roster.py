"""Remembers workers that were lost, until they come back or nobody cares any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tandem.core.clock import Clock
from tandem.core.cluster import WorkerInfo
from tandem.core.ids import WorkerId, WorkerLife

KEPT_S: Final = 900.0
KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class LostWorker:
    """A life that ended without having drained."""

    info: WorkerInfo
    since: float
    """Monotonic seconds at which the gateway heard of it."""


class Roster:
    """Follows a watcher of the cluster by its callbacks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._here: dict[WorkerId, WorkerInfo] = {}
        self._lost: dict[WorkerId, LostWorker] = {}

    def joined(self, info: WorkerInfo) -> None:
        """A worker is there, again or for the first time; or has other facts."""
        self._here[info.worker_id] = info
        self._lost.pop(info.worker_id, None)

    def left(self, life: WorkerLife) -> None:
        """A worker is gone. One that drained was meant to go."""
        info = self._here.get(life.worker_id)
        if info is None or info.life != life:
            return
        del self._here[life.worker_id]
        if not info.draining:
            self._lost[life.worker_id] = LostWorker(info, self._clock.monotonic())
            while len(self._lost) > KEPT:
                del self._lost[next(iter(self._lost))]

    def lost(self) -> tuple[LostWorker, ...]:
        """Those of the last KEPT_S seconds, the longest gone first."""
        since = self._clock.monotonic() - KEPT_S
        return tuple(one for one in self._lost.values() if one.since >= since)
