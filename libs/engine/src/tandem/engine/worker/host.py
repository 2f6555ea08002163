"""Hosts one engine: starts it, registers it, serves its Sessions, and takes it down again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from tandem.core import version
from tandem.core.cluster import ClusterView, RankEndpoint, WorkerInfo
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Incarnation, RankId, Role, RoomId, WorkerId, WorkerLife, can_serve
from tandem.engine.port import Engine, EngineFacts
from tandem.engine.rank import open_rooms, status, wire
from tandem.engine.worker.held_pages import HeldPagesFeeds
from tandem.engine.worker.leg_trace import LegTraces
from tandem.engine.worker.page_shares import PageShares
from tandem.engine.worker.progress import ProgressWatch, cpu_ticks
from tandem.engine.worker.role_switch import RoleSwitch
from tandem.engine.worker.session import Session
from tandem.engine.worker.settings import WorkerSettings
from tandem.engine.worker.worker_metrics import WorkerFacts, WorkerMetrics
from tandem.rpc import convert
from tandem.rpc.client import open_channel
from tandem.rpc.collecting import spare_what_is_there
from tandem.rpc.credentials import Credentials, TlsSettings
from tandem.rpc.exits import ExitCode
from tandem.rpc.lease import INSTANCE_ID_BYTES, LeaseCallbacks, LeaseKeeper
from tandem.rpc.loop_lag import measure_lag
from tandem.rpc.metrics_server import MetricsServer
from tandem.rpc.operators import changed
from tandem.rpc.run import Stop, announce
from tandem.rpc.server import GrpcServer
from tandem.rpc.tasks import TaskSupervisor
from tandem.rpc.tracing.provider import Tracing
from tandem.rpc.tracing.service import add_trace_service
from tandem.rpc.tracing.settings import TraceSettings
from tandem.rpc.watch import ClusterWatcher, WatchCallbacks
from tandem.v1 import session_pb2

log = logging.getLogger(__name__)

STATUS_INTERVAL_MS = 500
LINGER_MS = 100
"""How long a worker that drains, to take another role, still takes rooms: until every gateway has heard of that."""

_FATAL_EXITS = {ErrorReason.STALE_INCARNATION: ExitCode.REPLACED, ErrorReason.ENGINE_FAILED: ExitCode.ENGINE_LOST}

AddService = Callable[[GrpcServer, "WorkerHost"], None]


class WorkerHost:
    """One worker. `run` is its whole life; the rest is what its proto service calls."""

    def __init__(self, role: Role, settings: WorkerSettings, engine: Engine, add_service: AddService) -> None:
        self.role = role
        self.engine = engine
        self.facts: EngineFacts
        self.shares: PageShares
        self.life = WorkerLife(WorkerId(settings.worker_id), Incarnation(0))
        self._settings = settings
        self._tracing = Tracing(role.value, settings.worker_id, TraceSettings.load())
        self.traces = LegTraces(self._tracing, role, self.life.worker_id)
        engine.on_room_traced(self.traces.room_traced)
        self._add_service = add_service
        self._metrics = WorkerMetrics(role)
        self._leaving = False
        self._marked = False
        """Whether bootstrap has marked the worker as draining, as last heard."""
        self._stuck = False
        """Whether the engine does not answer."""
        self._serving = False
        """Whether the engine runs and the worker has registered."""
        self._sessions = 0
        self._streams: set[asyncio.Task[Any]] = set()
        """What serves them."""
        self._feeds = HeldPagesFeeds(settings.max_sessions)
        self._open_rooms = 0
        self._submitted = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._watcher: ClusterWatcher | None = None
        self._switch = RoleSwitch()
        self._over = asyncio.Event()
        """Whether this life of the worker is."""

    # ------------------------------------------------------------ life

    async def run(self, stop: Stop) -> int:
        """Starts, serves until `stop`, drains and closes. Returns the exit code."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._serve(stop, stack)
        except TandemError as error:
            if stop.requested:
                log.info("stopped before it served: %s", stop.reason)
                return stop.code
            log.error("%s", error)
            return _FATAL_EXITS.get(error.reason, ExitCode.FAILED)
        log.info("stopped: %s", stop.reason)
        return stop.code

    async def _serve(self, stop: Stop, stack: contextlib.AsyncExitStack) -> None:
        stack.push_async_callback(self._tracing.close)
        credentials = Credentials.from_settings(TlsSettings.load())
        channel = await stack.enter_async_context(open_channel(self._settings.bootstrap_address, credentials))
        await self._serve_metrics(stack)
        server = GrpcServer(credentials=credentials, on_call=self._metrics.metrics.count_rpc, spans=self._tracing)
        self._add_service(server, self)
        add_trace_service(server, self._tracing)
        bound = server.bind(f"{self._settings.host}:{self._settings.port}")
        await server.start()
        stack.push_async_callback(server.stop, grace_ms=200)
        stack.push_async_callback(self.engine.close)
        self.facts = await _unless(stop, self.engine.start())
        address = f"{self._settings.host_to_dial}:{bound.rpartition(':')[2]}"
        while (role := await self._live(channel, address, server, stop)) is not None:
            await self._take_role(role, stop)

    async def _live(self, channel: Any, address: str, server: GrpcServer, stop: Stop) -> Role | None:
        """One life, in one role: registers, serves and drains. Returns the role of the next one; None if the process is
        to stop. Raises TandemError if it can't go on."""
        async with contextlib.AsyncExitStack() as stack:
            self.shares = PageShares(self.facts)
            self._leaving = self._stuck = False
            await self._watch(channel, stack)
            spare_what_is_there()
            lease = await self._register(channel, address, stop, stack)
            await server.set_ready(True)
            self._serving = True
            announce(self._settings.worker_id, address)
            self._switch.made(self.life)
            end = asyncio.ensure_future(self._until_end(stop, lease))
            try:
                while True:
                    asked = asyncio.ensure_future(self._switch.asked())
                    await asyncio.wait({end, asked}, return_when=asyncio.FIRST_COMPLETED)
                    if end.done():
                        asked.cancel()
                        end.result()  # raises what the engine failed with
                        await server.drain()
                        await self._drain(lease)
                        return None
                    if await self._emptied(lease, end):
                        await server.set_ready(False)
                        await self._end_life()
                        return asked.result()
            finally:
                end.cancel()

    async def _until_end(self, stop: Stop, lease: LeaseKeeper) -> None:
        """Returns when the process is to stop. Raises what the engine, or the watch over it, failed with."""
        failed = asyncio.ensure_future(self.engine.wait_failed())
        stopped = asyncio.ensure_future(stop.wait())
        progress = ProgressWatch(
            self.engine.status,
            lease,
            self._set_stuck,
            self._settings.progress_timeout_ms,
            lambda: cpu_ticks(self.engine.rank_pids()),
        )
        watching = asyncio.ensure_future(progress.run())
        try:
            await asyncio.wait({failed, stopped, watching}, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise failed.result()
            if watching.done():
                watching.result()  # raises what it crashed with
        finally:
            for part in (failed, stopped, watching):
                part.cancel()

    async def _end_life(self) -> None:
        """Nothing of this life is served any more. What its rooms said last is written before anybody hears of that."""
        self._serving = False
        self.life = WorkerLife(self.life.worker_id, Incarnation(0))
        over, self._over = self._over, asyncio.Event()
        over.set()
        if self._streams:
            await asyncio.wait(self._streams)

    async def _take_role(self, role: Role, stop: Stop) -> None:
        """The engine takes another role, or stays as it was. Raises TandemError if it can't go on."""
        log.info("becomes a %s worker", role.value)
        try:
            self.facts = await _unless(stop, self.engine.switch(role))
        except TandemError as error:
            self._switch.refused(error)
            if stop.requested or error.reason is ErrorReason.ENGINE_FAILED:
                raise
            log.warning("stays a %s worker: %s", self.role.value, error)
            return
        self._metrics.become(role)
        self.role = self.traces.role = role

    async def _emptied(self, lease: LeaseKeeper, end: asyncio.Future[None]) -> bool:
        """Whether no room is open any more, so that the worker can take another role; else it goes on in this one."""
        with contextlib.suppress(TandemError):
            await lease.drain()
        quiet = asyncio.ensure_future(self._quiet())
        limit_ms = self._settings.drain_timeout_ms
        await asyncio.wait({quiet, end}, timeout=limit_ms / 1000, return_when=asyncio.FIRST_COMPLETED)
        if quiet.done() and not end.done():
            self._leaving = True
            return True
        quiet.cancel()
        why = "the worker ends" if end.done() else f"{self._open_rooms} rooms were still open after {limit_ms} ms"
        self._switch.refused(TandemError(ErrorReason.DEADLINE_EXCEEDED, f"{why}; it stays a {self.role.value} worker"))
        if not end.done():
            with contextlib.suppress(TandemError):
                await lease.undrain()
        return False

    async def _quiet(self) -> None:
        """Returns when no room was open for a while: a gateway that has not heard of the drain yet still sends some."""
        submitted = -1
        while submitted != self._submitted or self._open_rooms:
            await self._idle.wait()
            submitted = self._submitted
            await asyncio.sleep(LINGER_MS / 1000)

    def _set_stuck(self, stuck: bool) -> None:
        self._stuck = stuck

    async def _serve_metrics(self, stack: contextlib.AsyncExitStack) -> None:
        """From the very start: an engine may take minutes to load. It is announced before the worker is."""
        if not self._settings.metrics_address:
            return
        listener = MetricsServer(self._settings.metrics_address, self._scraped)
        announce("metrics", await listener.start())
        stack.push_async_callback(listener.close)
        tasks = TaskSupervisor(max_tasks=1)
        stack.push_async_callback(tasks.close)
        tasks.spawn(measure_lag(self._metrics.lag.observe), "event loop lag")

    async def _scraped(self) -> bytes:
        """What operators see, asked of every rank now; of none while the engine starts."""
        measured = None
        if self._serving:
            with contextlib.suppress(TandemError):
                measured = await self.engine.measured()
        facts = WorkerFacts(
            sessions=self._sessions,
            submits=self._submitted,
            open_rooms=self._open_rooms,
            draining=self.draining,
            stuck=self._stuck,
            serving=self._serving,
        )
        return self._metrics.told(facts, measured)

    async def _watch(self, channel: Any, stack: contextlib.AsyncExitStack) -> None:
        def joined(info: WorkerInfo) -> None:
            if self.role is Role.DECODE and info.role is Role.PREFILL and self.facts.model in info.models:
                self.engine.peer_joined(info.life, _addresses(info))

        def left(life: WorkerLife) -> None:
            # A view that empties because bootstrap is out of reach says nothing of the peers: their links know better.
            if self._watcher is not None and self._watcher.connected:
                self.engine.peer_gone(life)

        callbacks = WatchCallbacks(joined=joined, left=left)
        self._watcher = ClusterWatcher(channel, rng=random.Random(secrets.randbits(64)), callbacks=callbacks)
        self._watcher.start()
        stack.push_async_callback(self._watcher.close)

    async def _register(self, channel: Any, address: str, stop: Stop, stack: contextlib.AsyncExitStack) -> LeaseKeeper:
        def registered(life: WorkerLife) -> None:
            self.life = life
            self._metrics.registrations.inc()
            self.engine.identify(life)

        def fatal(error: TandemError) -> None:
            log.error("%s", error)
            stop.request(str(error), _FATAL_EXITS.get(error.reason, ExitCode.REFUSED))

        def draining(marked: bool) -> None:
            self._marked = marked

        facts = self.facts
        info = WorkerInfo(
            life=self.life,
            role=self.role,
            models=(facts.model,),
            address=address,
            layout=facts.layout,
            ranks=tuple(RankEndpoint(rank.rank, rank.kv_link_address) for rank in facts.ranks),
            context_tokens=facts.context_tokens,
            max_running=facts.max_running,
            total_pages=facts.total_pages,
            protocol=version.CURRENT,
            tokenizer_path=self._settings.tokenizer_path,
        )
        lease = LeaseKeeper(
            channel,
            info,
            instance_id=secrets.token_bytes(INSTANCE_ID_BYTES),
            rng=random.Random(secrets.randbits(64)),
            callbacks=LeaseCallbacks(
                registered=registered,
                draining=draining,
                lost=self._metrics.lease_losses.inc,
                missed=self._metrics.missed_heartbeats.inc,
                fatal=fatal,
            ),
        )
        stack.push_async_callback(lease.close)
        await lease.start(self._settings.register_timeout_ms)
        return lease

    async def _drain(self, lease: LeaseKeeper) -> None:
        """No new rooms; the running ones finish, bounded."""
        self._leaving = True
        with contextlib.suppress(TandemError):
            await lease.drain()
        log.info("draining: %d rooms are open", self._open_rooms)
        try:
            async with asyncio.timeout(self._settings.drain_timeout_ms / 1000):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d rooms were still open after %d ms", self._open_rooms, self._settings.drain_timeout_ms)

    # ------------------------------------------------------------ what Sessions need

    @property
    def draining(self) -> bool:
        """Whether no gateway should send new rooms: the worker leaves, is stuck, or bootstrap has marked it."""
        return self.refusing or self._marked

    @property
    def refusing(self) -> bool:
        """Whether new rooms are refused: the worker leaves or is stuck.

        Bootstrap's mark is for those who choose. The worker hears of it a heartbeat later than they do, so a room
        that comes right after the mark was taken back would be refused if the worker went by it.
        """
        return self._leaving or self._stuck

    def take_room(self) -> None:
        """Counts a room in. Raises TandemError(OVERLOADED) if there are too many."""
        if self._open_rooms >= self._settings.max_submits:
            raise TandemError(ErrorReason.OVERLOADED, f"{self._settings.max_submits} rooms are open on this worker")
        self._open_rooms += 1
        self._submitted += 1
        self._idle.clear()

    def room_ended(self) -> None:
        """Counts a room out."""
        self._open_rooms -= 1
        if self._open_rooms == 0:
            self._idle.set()

    async def peer_addresses(self, peer: WorkerLife) -> dict[RankId, str]:
        """KvLink addresses of a peer, waiting a little for one that the view does not hold yet."""
        assert self._watcher is not None, "Sessions are served after start"
        try:
            view = await self._watcher.wait_for(lambda view: view.find(peer) is not None, self._settings.peer_wait_ms)
        except TandemError as error:
            raise TandemError(ErrorReason.PEER_LOST, f"worker {peer} is not in the cluster") from error
        info = view.find(peer)
        return _addresses(info) if info is not None else {}

    # ------------------------------------------------------------ what the proto service calls

    async def session(
        self,
        requests: AsyncIterator[session_pb2.SessionRequest],
        write: Callable[[session_pb2.SessionResponse], Awaitable[None]],
    ) -> None:
        """One Session stream."""
        if self.refusing or not self.life.incarnation:
            raise TandemError(ErrorReason.DRAINING, f"worker {self.life.worker_id} takes no Sessions now")
        if self._sessions >= self._settings.max_sessions:
            raise TandemError(ErrorReason.OVERLOADED, f"{self._settings.max_sessions} Sessions are open already")
        stream = asyncio.current_task()
        assert stream is not None, "gRPC runs each call in a task"
        self._streams.add(stream)
        self._sessions += 1
        try:
            await Session(self).run(requests, write, self._over)
        finally:
            self._sessions -= 1
            self._streams.discard(stream)

    def require(self, role: Role) -> None:
        """Raises TandemError(DRAINING) to who calls another role than the one that the worker has now."""
        if role is not self.role:
            raise TandemError(
                ErrorReason.DRAINING, f"worker {self.life.worker_id} is one of {self.role.value} now, not {role.value}"
            )

    async def switch_role(self, request: session_pb2.SwitchRoleRequest) -> session_pb2.SwitchRoleResponse:
        """The worker takes another role."""
        role, before, name = convert.role_from_proto(request.role), self.role, self.life.worker_id
        if role is before:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{name} is a {role.value} worker already", field="role")
        if role not in self.engine.roles:
            text = f"{name} can't become a {role.value} worker without a restart"
            raise TandemError(ErrorReason.NOT_SUPPORTED, text, field="role")
        if self._leaving or not self.life.incarnation:
            raise TandemError(ErrorReason.DRAINING, f"{name} does not serve now")
        await self._require_others()
        life = await self._switch.ask(role)
        changed(f"role of {name}", before.value, role.value)
        return session_pb2.SwitchRoleResponse(worker=convert.life_to_proto(life))

    async def _require_others(self) -> None:
        """Raises INVALID_ARGUMENT if nobody would serve without this worker, as far as bootstrap says: right
        after its start it has not heard of the others."""
        name = self.life.worker_id

        def others_serve(view: ClusterView) -> bool:
            others = [one for one in view.workers.values() if one.worker_id != name and not one.draining]
            return can_serve(lambda role: [one for one in others if one.role is role])

        assert self._watcher is not None, "it serves"
        try:
            await self._watcher.wait_for(others_serve, self._settings.peer_wait_ms)
        except TandemError as error:
            text = f"nobody would serve without {name}"
            raise TandemError(ErrorReason.INVALID_ARGUMENT, text, field="role") from error

    async def abort(self, request: session_pb2.AbortRequest) -> session_pb2.AbortResponse:
        """Ends one room."""
        found = await self.engine.abort(RoomId(request.room), wire.why_of(request.failure))
        return session_pb2.AbortResponse(found=found)

    async def get_status(self) -> session_pb2.GetStatusResponse:
        """The worker's state now."""
        message = status.to_proto(await self.engine.status())
        message.worker.CopyFrom(convert.life_to_proto(self.life))
        message.submitted = self._submitted
        message.draining = self.draining
        return session_pb2.GetStatusResponse(status=message)

    async def watch_held_pages(self) -> AsyncIterator[session_pb2.HeldPagesChange]:
        """What the prefix cache holds, and what changes."""
        if not self.life.incarnation:
            raise TandemError(ErrorReason.DRAINING, f"worker {self.life.worker_id} is still starting")
        async for change in self._feeds.follow(self.engine.held_pages, self._over):
            yield change

    async def list_rooms(self, request: session_pb2.ListRankRoomsRequest) -> session_pb2.ListRankRoomsResponse:
        """The open rooms of every rank, the oldest first."""
        if not self.life.incarnation:
            raise TandemError(ErrorReason.DRAINING, f"worker {self.life.worker_id} is still starting")
        found = await self.engine.rooms(open_rooms.limit_of(request.limit, len(self.facts.ranks)))
        return session_pb2.ListRankRoomsResponse(rooms=map(open_rooms.to_proto, found.rooms), total=found.total)

    async def watch_status(
        self, request: session_pb2.WatchStatusRequest
    ) -> AsyncIterator[session_pb2.WatchStatusResponse]:
        """The worker's state whenever it has changed, looked at every min_interval_ms."""
        interval_s = min(max(request.min_interval_ms or STATUS_INTERVAL_MS, 50), 60_000) / 1000
        last = b""
        while True:
            now = (await self.get_status()).status
            if (packed := now.SerializeToString(deterministic=True)) != last:
                last = packed
                yield session_pb2.WatchStatusResponse(status=now)
            await asyncio.sleep(interval_s)


async def _unless(stop: Stop, work: Coroutine[Any, Any, EngineFacts]) -> EngineFacts:
    """What `work` returns. Raises TandemError(DRAINING) if the process is asked to stop before."""
    working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise TandemError(ErrorReason.DRAINING, "the engine was still starting")
        return working.result()
    finally:
        for part in (working, stopped):
            part.cancel()
        await asyncio.gather(working, stopped, return_exceptions=True)


def _addresses(info: WorkerInfo) -> dict[RankId, str]:
    return {endpoint.rank: endpoint.kv_link_address for endpoint in info.ranks}
