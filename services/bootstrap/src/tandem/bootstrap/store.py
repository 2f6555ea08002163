"""Where the registry lives: the store port, and the store in memory."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from tandem.core.clock import Clock
from tandem.core.cluster import Event, Joined, Left, WorkerInfo
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Incarnation, WorkerId, WorkerLife
from tandem.core.registry import Change, Registry, RegistryLimits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every worker of one revision, in order of id."""

    workers: tuple[WorkerInfo, ...]
    revision: int


class Subscription(Protocol):
    """One watcher: a snapshot, and every change after it."""

    snapshot: Snapshot

    def changes(self) -> AsyncIterator[Change]:
        """Ends when the store closes. Raises OVERLOADED if the watcher reads too slowly."""
        ...

    def close(self) -> None:
        """Ends it. Idempotent."""
        ...


class Store(Protocol):
    """The store port. Errors are those of tandem.core.registry.Registry."""

    @property
    def incarnation(self) -> int:
        """One life of the store: 1..2^63-1. Watchers of another life start over."""
        ...

    @property
    def lease_ttl_ms(self) -> int:
        """Lease of every worker."""
        ...

    async def register(self, info: WorkerInfo, instance_id: bytes) -> Incarnation:
        """Adds or renews a worker."""
        ...

    async def heartbeat(self, life: WorkerLife) -> bool:
        """Renews a lease; returns whether the worker is marked as draining."""
        ...

    async def deregister(self, life: WorkerLife) -> None:
        """Removes a worker."""
        ...

    async def set_draining(self, worker_id: WorkerId, draining: bool) -> None:
        """Marks a worker, or takes the mark back."""
        ...

    async def read(self) -> Snapshot:
        """The workers of this moment."""
        ...

    async def subscribe(self) -> Subscription:
        """Starts to watch. Raises OVERLOADED when there are too many watchers."""
        ...


class _Queue:
    """A Subscription with a bounded queue. One that overflows is emptied, and ends with OVERLOADED."""

    def __init__(self, snapshot: Snapshot, limit: int, owner: set[_Queue]) -> None:
        self.snapshot = snapshot
        self._limit = limit
        self._owner = owner
        self._pending: deque[Change] = deque()
        self._news = asyncio.Event()
        self._overflow = False
        self._closed = False

    def push(self, change: Change) -> None:
        if len(self._pending) >= self._limit:
            self._overflow = True
            self.close()
            self._pending.clear()
        elif not self._closed:
            self._pending.append(change)
            self._news.set()

    def close(self) -> None:
        self._closed = True
        self._owner.discard(self)
        self._news.set()

    async def changes(self) -> AsyncIterator[Change]:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._pending:
                yield self._pending.popleft()
            if self._overflow:
                text = f"the watcher left more than {self._limit} changes unread; start over"
                raise TandemError(ErrorReason.OVERLOADED, text)
            if self._closed:
                return


class MemoryStore:
    """The store of one bootstrap process. A restart empties it, and every worker registers again."""

    def __init__(
        self,
        limits: RegistryLimits,
        clock: Clock,
        *,
        max_watchers: int,
        watch_queue: int,
        on_change: Callable[[Event], None] = lambda _: None,
    ) -> None:
        """on_change: told of everybody who joins or leaves."""
        self._on_change = on_change
        self._registry = Registry(limits, self._publish)
        self._grace_s = limits.grace_ms / 1000
        self._clock = clock
        self._max_watchers = max_watchers
        self._watch_queue = watch_queue
        self._watchers: set[_Queue] = set()
        self._incarnation = max(1, clock.wall_ms())
        self._occupied = asyncio.Event()

    @property
    def workers(self) -> tuple[WorkerInfo, ...]:
        """Who is registered."""
        return self._registry.workers()

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._watchers)

    @property
    def incarnation(self) -> int:
        """One life of the store."""
        return self._incarnation

    @property
    def lease_ttl_ms(self) -> int:
        """Lease of every worker."""
        return self._registry.lease_ttl_ms

    async def register(self, info: WorkerInfo, instance_id: bytes) -> Incarnation:
        """Adds or renews a worker."""
        incarnation = self._registry.register(info, instance_id, self._clock.monotonic(), self._clock.wall_ms())
        self._occupied.set()
        return incarnation

    async def heartbeat(self, life: WorkerLife) -> bool:
        """Renews a lease."""
        return self._registry.heartbeat(life, self._clock.monotonic())

    async def deregister(self, life: WorkerLife) -> None:
        """Removes a worker."""
        self._registry.deregister(life)

    async def set_draining(self, worker_id: WorkerId, draining: bool) -> None:
        """Marks a worker, or takes the mark back."""
        self._registry.set_draining(worker_id, draining)

    async def read(self) -> Snapshot:
        """The workers of this moment."""
        return Snapshot(self._registry.workers(), self._registry.revision)

    async def subscribe(self) -> Subscription:
        """Starts to watch."""
        if len(self._watchers) >= self._max_watchers:
            raise TandemError(ErrorReason.OVERLOADED, f"{self._max_watchers} watchers are connected already")
        watcher = _Queue(await self.read(), self._watch_queue, self._watchers)
        self._watchers.add(watcher)
        return watcher

    async def run(self) -> None:
        """Removes workers whose lease has run out, until cancelled. Sleeps until the next lease can end."""
        while True:
            deadline = self._registry.next_deadline()
            if deadline is None:
                self._occupied.clear()
                await self._occupied.wait()
                continue
            left_s = deadline - self._clock.monotonic()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue  # it has been renewed, most likely: no grace is due, which others would have to wait for
            await self._grace()
            self._registry.expire(self._clock.monotonic())

    def close(self) -> None:
        """Ends every watch."""
        for watcher in list(self._watchers):
            watcher.close()

    async def _grace(self) -> None:
        """Gives the loop time to read heartbeats that have come.

        If the process was held up in the meantime, no time was given: once more.
        """
        while True:
            start = self._clock.monotonic()
            await asyncio.sleep(self._grace_s)
            if self._clock.monotonic() - start < 2 * self._grace_s:
                return
            log.warning(
                "this process was held up; leases that may have been renewed meanwhile get %.1f s", self._grace_s
            )

    def _publish(self, change: Change) -> None:
        _log_change(change)
        self._on_change(change.event)
        for watcher in list(self._watchers):
            watcher.push(change)


def _log_change(change: Change) -> None:
    match change.event:
        case Joined(info):
            draining = ", draining" if info.draining else ""
            log.info("revision %d: %s %s at %s%s", change.revision, info.role.value, info.life, info.address, draining)
        case Left(life, reason):
            log.info("revision %d: %s left: %s", change.revision, life, reason.value)
