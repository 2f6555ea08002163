"""Keeps a worker registered: Register, then heartbeats, and Register again whenever that is needed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import grpc

from tandem.core.cluster import WorkerInfo
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Incarnation, WorkerLife
from tandem.rpc import convert
from tandem.rpc.backoff import Backoff, BackoffPolicy
from tandem.rpc.errors import from_rpc_error
from tandem.rpc.tasks import TaskSupervisor
from tandem.v1 import bootstrap_pb2, bootstrap_pb2_grpc

log = logging.getLogger(__name__)

INSTANCE_ID_BYTES: Final = 16
REGISTER_TIMEOUT_MS: Final = 5000
LEAVE_TIMEOUT_MS: Final = 1000
HEARTBEATS_PER_LEASE: Final = 3

FATAL: Final = frozenset(
    {
        ErrorReason.STALE_INCARNATION,
        ErrorReason.VERSION_MISMATCH,
        ErrorReason.LAYOUT_MISMATCH,
        ErrorReason.INVALID_ARGUMENT,
    }
)
"""Answers of bootstrap that no other attempt of this life can change."""


def _nothing(_: object) -> None:
    return None


def _idle() -> None:
    return None


@dataclass(frozen=True, slots=True)
class LeaseCallbacks:
    """Called on the loop."""

    registered: Callable[[WorkerLife], None] = _nothing
    """After each Register, so also after a restart of bootstrap."""
    draining: Callable[[bool], None] = _nothing
    """When bootstrap marks the worker as draining, or takes it back."""
    lost: Callable[[], None] = _idle
    """When bootstrap says that the worker is not registered: its lease has run out, or bootstrap was restarted."""
    missed: Callable[[], None] = _idle
    """After each heartbeat that bootstrap did not answer."""
    fatal: Callable[[TandemError], None] = _nothing
    """Bootstrap refuses this life for good (see FATAL), or the keeper crashed. No lease is kept any more."""


class LeaseKeeper:
    """One life of one worker at bootstrap."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        info: WorkerInfo,
        *,
        instance_id: bytes,
        rng: random.Random,
        callbacks: LeaseCallbacks | None = None,
        backoff: BackoffPolicy | None = None,
    ) -> None:
        """channel: to bootstrap; stays the caller's. info: its incarnation is ignored.
        instance_id: 16 random bytes, one value per process. rng: for the jitter of retries.
        """
        self._stub = bootstrap_pb2_grpc.BootstrapServiceStub(channel)
        self._info = replace(info, life=WorkerLife(info.worker_id, Incarnation(0)))
        self._instance_id = instance_id
        self._callbacks = callbacks or LeaseCallbacks()
        self._backoff = Backoff(backoff or BackoffPolicy(max_ms=500), rng)
        self._lease_ttl_ms = 0
        self._first: asyncio.Future[WorkerLife] = asyncio.get_running_loop().create_future()
        self._tasks = TaskSupervisor(on_crash=self._crashed, max_tasks=1)
        self._keeping: asyncio.Task[None] | None = None

    @property
    def life(self) -> WorkerLife:
        """The worker and its life; incarnation 0 until the first Register was answered."""
        return self._info.life

    @property
    def incarnation(self) -> Incarnation:
        """This life's number; 0 until the first Register was answered. It never changes after."""
        return self._info.life.incarnation

    @property
    def draining(self) -> bool:
        """Whether bootstrap has marked the worker as draining, as last heard."""
        return self._info.draining

    async def start(self, timeout_ms: float) -> WorkerLife:
        """Registers, and goes on keeping the lease in the background.

        Tries until bootstrap answers. Raises what bootstrap refuses with (see FATAL), or
        DEADLINE_EXCEEDED after `timeout_ms`.
        """
        self.resume()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await asyncio.shield(self._first)
        except TimeoutError:
            text = f"bootstrap did not answer in {timeout_ms:.0f} ms"
            raise TandemError(ErrorReason.DEADLINE_EXCEEDED, text) from None

    async def drain(self) -> None:
        """Asks bootstrap to send no new rooms here. Raises what the call failed with."""
        await self._mark(draining=True)

    async def undrain(self) -> None:
        """Takes that back. Raises what the call failed with."""
        await self._mark(draining=False)

    async def suspend(self) -> None:
        """Leaves the cluster until `resume`. Where bootstrap is out of reach, the lease ends by itself."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        await self._leave()

    def resume(self) -> None:
        """Registers, after `suspend` as the same life, and keeps the lease in the background."""
        self._keeping = self._tasks.spawn(self._run(), "lease")

    async def close(self) -> None:
        """Stops the heartbeats and leaves the cluster. A bootstrap that is out of reach is not waited for."""
        await self._tasks.close()
        if not self._first.done():
            self._first.cancel()
        await self._leave()

    async def _leave(self) -> None:
        if not self.incarnation:
            return
        try:
            request = bootstrap_pb2.DeregisterRequest(worker=convert.life_to_proto(self.life))
            await self._stub.Deregister(request, timeout=LEAVE_TIMEOUT_MS / 1000)
        except grpc.aio.AioRpcError as error:
            log.info("could not deregister %s: %s", self.life, from_rpc_error(error))

    async def _run(self) -> None:
        """Register, beat until something is wrong, and again; ends when bootstrap refuses for good."""
        while True:
            try:
                await self._register()
                await self._beat()
            except grpc.aio.AioRpcError as rpc_error:
                error = from_rpc_error(rpc_error)
                if error.reason in FATAL:
                    self._fail(error)
                    return
                if error.reason is ErrorReason.NOT_REGISTERED:
                    self._callbacks.lost()
                else:
                    log.warning("lease of %s: %s", self.life, error)
                    await asyncio.sleep(self._backoff.next_ms() / 1000)

    async def _register(self) -> None:
        request = bootstrap_pb2.RegisterRequest(
            info=convert.worker_info_to_proto(self._info), instance_id=self._instance_id
        )
        answer = await self._stub.Register(request, timeout=REGISTER_TIMEOUT_MS / 1000)
        self._backoff.reset()
        self._lease_ttl_ms = answer.lease_ttl_ms
        life = WorkerLife(self._info.worker_id, Incarnation(answer.incarnation))
        self._info = replace(self._info, life=life)
        log.info("registered as %s, lease %d ms", life, self._lease_ttl_ms)
        self._callbacks.registered(life)
        if not self._first.done():
            self._first.set_result(life)

    async def _beat(self) -> None:
        """Heartbeats at a third of the lease, counted from the start of each, so that a slow answer delays none."""
        request = bootstrap_pb2.HeartbeatRequest(worker=convert.life_to_proto(self.life))
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            interval_s = self._lease_ttl_ms / 1000 / HEARTBEATS_PER_LEASE
            due = max(due + interval_s, loop.time())
            await asyncio.sleep(due - loop.time())
            answer = await self._send_heartbeat(request)
            self._lease_ttl_ms = answer.lease_ttl_ms
            self._heard_draining(answer.draining)

    async def _send_heartbeat(self, request: bootstrap_pb2.HeartbeatRequest) -> bootstrap_pb2.HeartbeatResponse:
        """One heartbeat, tried until bootstrap answers it. Raises what it answers with.

        While a connection lives, a heartbeat is always on its way: a bootstrap that was held up
        reads it first, and no lease ends by that.
        """
        while True:
            try:
                answer = await self._stub.Heartbeat(request, timeout=self._lease_ttl_ms / 1000)
            except grpc.aio.AioRpcError as rpc_error:
                error = from_rpc_error(rpc_error)
                if error.reason not in (ErrorReason.PEER_LOST, ErrorReason.DEADLINE_EXCEEDED):
                    raise
                log.warning("heartbeat of %s: %s", self.life, error)
                self._callbacks.missed()
                if error.reason is ErrorReason.PEER_LOST:
                    await asyncio.sleep(self._backoff.next_ms() / 1000)
            else:
                self._backoff.reset()
                return answer

    async def _mark(self, *, draining: bool) -> None:
        worker_id, timeout_s = self._info.worker_id, LEAVE_TIMEOUT_MS / 1000
        try:
            if draining:
                await self._stub.Drain(bootstrap_pb2.DrainRequest(worker_id=worker_id), timeout=timeout_s)
            else:
                await self._stub.Undrain(bootstrap_pb2.UndrainRequest(worker_id=worker_id), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        self._heard_draining(draining)

    def _heard_draining(self, draining: bool) -> None:
        if draining != self._info.draining:
            self._info = replace(self._info, draining=draining)
            self._callbacks.draining(draining)

    def _fail(self, error: TandemError) -> None:
        log.error("bootstrap refuses %s: %s", self.life, error)
        if not self._first.done():
            self._first.set_exception(error)
        else:
            self._callbacks.fatal(error)

    def _crashed(self, name: str, error: Exception) -> None:
        self._fail(TandemError(ErrorReason.INTERNAL, f"{name} crashed: {error}"))
