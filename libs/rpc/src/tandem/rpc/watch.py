"""Keeps a view of the cluster by BootstrapService.Watch, through restarts of bootstrap."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import grpc

from tandem.core.cluster import ClusterView, Event, Joined, Left, WorkerInfo, differences
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import WorkerLife
from tandem.core.version import CURRENT, Protocol
from tandem.rpc import convert
from tandem.rpc.backoff import Backoff, BackoffPolicy
from tandem.rpc.errors import from_rpc_error
from tandem.rpc.tasks import TaskSupervisor
from tandem.v1 import bootstrap_pb2, bootstrap_pb2_grpc

log = logging.getLogger(__name__)

Predicate = Callable[[ClusterView], bool]

MAX_WAITERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Patience:
    """How long what was known still counts; one lease at least."""

    outage_ms: int = 10_000
    """While bootstrap is out of reach: its restart takes seconds. Who talks to a worker sees by itself if that dies."""
    return_ms: int = 3_000
    """When another life of the store is there: the workers that were known register with it at their next heartbeat."""


def _nothing(_: object) -> None:
    return None


@dataclass(frozen=True, slots=True)
class WatchCallbacks:
    """Called on the loop after the view has changed: first `left`, then `joined`, then `changed`."""

    joined: Callable[[WorkerInfo], None] = _nothing
    """A new life."""
    left: Callable[[WorkerLife], None] = _nothing
    """A life that is gone; a replaced one leaves before its successor joins."""
    changed: Callable[[WorkerInfo], None] = _nothing
    """The same life with other facts, such as draining."""


class ClusterWatcher:
    """Owns one ClusterView. Reconnects for ever.

    When the stream is lost, the view stays for a while and is then emptied. The workers that were known have a while to
    register with another life of the store. See `Patience`.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        rng: random.Random,
        callbacks: WatchCallbacks | None = None,
        backoff: BackoffPolicy | None = None,
        patience: Patience | None = None,
        protocol: Protocol = CURRENT,
    ) -> None:
        """channel: to bootstrap; stays the caller's. rng: for the jitter of reconnects."""
        self._stub = bootstrap_pb2_grpc.BootstrapServiceStub(channel)
        self._callbacks = callbacks or WatchCallbacks()
        self._backoff = Backoff(backoff or BackoffPolicy(), rng)
        self._patience = patience or Patience()
        self._protocol = protocol
        self._view = ClusterView()
        self._lease_ttl_ms = 0
        self._connected = False
        self._waiters: dict[asyncio.Future[ClusterView], Predicate] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = TaskSupervisor(max_tasks=1)

    @property
    def view(self) -> ClusterView:
        """The cluster as last heard."""
        return self._view

    @property
    def connected(self) -> bool:
        """Whether the stream lives and has sent its snapshot."""
        return self._connected

    def start(self) -> None:
        """Starts to watch, in the background."""
        self._tasks.spawn(self._run(), "cluster-watch")

    async def close(self) -> None:
        """Ends the watch. Waiters get CANCELLED."""
        await self._tasks.close()
        self._set_timer(0, None)
        self._connected = False
        for waiter in list(self._waiters):
            if not waiter.done():
                waiter.set_exception(TandemError(ErrorReason.CANCELLED, "the watch was closed"))

    async def wait_for(self, predicate: Predicate, timeout_ms: float) -> ClusterView:
        """Returns the first view, the present one included, of which `predicate` is true.

        Raises DEADLINE_EXCEEDED after `timeout_ms`.
        """
        if predicate(self._view):
            return self._view
        if len(self._waiters) >= MAX_WAITERS:
            raise TandemError(ErrorReason.OVERLOADED, f"{MAX_WAITERS} others wait for the cluster to change")
        waiter: asyncio.Future[ClusterView] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = predicate
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await waiter
        except TimeoutError:
            text = f"the cluster did not become what was waited for in {timeout_ms:.0f} ms"
            raise TandemError(ErrorReason.DEADLINE_EXCEEDED, text) from None
        finally:
            del self._waiters[waiter]

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
                log.info("watch: bootstrap ended the stream")
            except grpc.aio.AioRpcError as error:
                log.info("watch lost: %s", from_rpc_error(error))
            except TandemError as error:
                log.warning("watch starts over: %s", error)
            self._lost()
            await asyncio.sleep(self._backoff.next_ms() / 1000)

    async def _follow(self) -> None:
        """One stream, from its snapshot until it ends."""
        call = self._stub.Watch(bootstrap_pb2.WatchRequest(version=convert.protocol_to_proto(self._protocol)))
        try:
            async for message in call:
                self._take(message)
        finally:
            call.cancel()

    def _take(self, message: bootstrap_pb2.WatchResponse) -> None:
        self._lease_ttl_ms = message.lease_ttl_ms
        if message.WhichOneof("event") == "snapshot":
            self._take_snapshot(message)
            return
        if not self._connected or not self._view.follows(message.store_incarnation, message.revision):
            text = f"revision {message.revision} does not follow {self._view.revision}"
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, text)
        self._set_view(self._view.with_event(message.revision, _event(message)))

    def _take_snapshot(self, message: bootstrap_pb2.WatchResponse) -> None:
        workers = [convert.worker_info_from_proto(info) for info in message.snapshot.workers]
        view = self._view.with_snapshot(message.store_incarnation, message.revision, workers)
        self._connected = True
        self._backoff.reset()
        self._set_timer(self._patience.return_ms, self._drop_carried if view.carried else None)
        self._set_view(view)

    def _lost(self) -> None:
        # A timer that runs already stays as it is: a view outlives one outage, not one per attempt.
        if self._connected or self._timer is None:
            self._set_timer(self._patience.outage_ms, self._empty)
        self._connected = False

    def _empty(self) -> None:
        self._timer = None
        self._set_view(self._view.emptied())

    def _drop_carried(self) -> None:
        self._timer = None
        self._set_view(self._view.without_carried())

    def _set_timer(self, delay_ms: int, then: Callable[[], None] | None) -> None:
        """After a delay, or a lease if that is longer, `then`; replaces what was to happen before."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(delay_ms, self._lease_ttl_ms) / 1000, then) if then else None

    def _set_view(self, view: ClusterView) -> None:
        before, self._view = self._view, view
        found = differences(before, view)
        for life in found.left:
            self._callbacks.left(life)
        for info in found.joined:
            self._callbacks.joined(info)
        for info in found.changed:
            self._callbacks.changed(info)
        for waiter, predicate in list(self._waiters.items()):
            if not waiter.done() and predicate(view):
                waiter.set_result(view)


def _event(message: bootstrap_pb2.WatchResponse) -> Event:
    if message.WhichOneof("event") == "joined":
        return Joined(convert.worker_info_from_proto(message.joined))
    if message.WhichOneof("event") == "left":
        reason = convert.leave_reason_from_proto(message.left.reason)
        return Left(convert.life_from_proto(message.left.worker), reason)
    raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "a watch message without an event")
