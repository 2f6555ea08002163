"""Builds a gateway from its settings, runs it, and takes it down. Objects are built here and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from tandem.core.breaker import BreakerSettings
from tandem.core.decode_space import DecodeSpace
from tandem.core.errors import TandemError
from tandem.core.fair_queue import QueueLimits
from tandem.core.ids import Role
from tandem.core.outliers import OutlierSettings
from tandem.core.pair_book import PairBook
from tandem.core.policies import PolicyName, policy_named
from tandem.core.retry_budget import BudgetSettings
from tandem.core.share import WHOLE
from tandem.gateway.admission.keys import KeyRing
from tandem.gateway.admission.slots import Slots
from tandem.gateway.admission.tenants import Tenants
from tandem.gateway.admission.waiting_room import WaitingRoom
from tandem.gateway.api.openai_schema import SchemaLimits
from tandem.gateway.api.responses_store import KeepLimits, ResponseStore
from tandem.gateway.dashboard.board import Board, Sources
from tandem.gateway.dashboard.feed import Feed
from tandem.gateway.dashboard.recorder import Recorder
from tandem.gateway.dashboard.roster import Roster
from tandem.gateway.dashboard.traces import RecentTraces
from tandem.gateway.gateway_metrics import MAX_MODELS, GatewayMetrics
from tandem.gateway.operate.admin import AdminServicer
from tandem.gateway.operate.cluster_traces import ClusterTraces
from tandem.gateway.routing.decode_room import DecodeRoom
from tandem.gateway.routing.health import HealthBook
from tandem.gateway.routing.held_pages import HeldPages
from tandem.gateway.routing.pair_costs import saw_status
from tandem.gateway.routing.pool import PoolSettings, SessionPool
from tandem.gateway.routing.rooms import RoomBook
from tandem.gateway.routing.router import Router, RouterSettings
from tandem.gateway.settings import STATUS_INTERVAL_MS, GatewaySettings
from tandem.gateway.siblings.asking import SERVICE_NAME as SIBLING_SERVICE
from tandem.gateway.siblings.asking import Siblings, SiblingServicer
from tandem.gateway.siblings.boards import Boards
from tandem.gateway.siblings.place import Place
from tandem.gateway.siblings.responses import Responses
from tandem.gateway.siblings.scrape import Scrape
from tandem.gateway.text.parsers import load_parsers
from tandem.gateway.text.speech import Parsers
from tandem.gateway.text.tokenizer import Encoder, HuggingFaceEncoder, PromptTokenizer
from tandem.gateway.text.tokenizers import TokenizerPaths, Tokenizers, loader
from tandem.gateway.web import token_endpoints
from tandem.gateway.web.dashboard_endpoints import Dashboard
from tandem.gateway.web.generation import GenerationLimits, Works
from tandem.gateway.web.listening import listen, server_of, url_of
from tandem.gateway.web.paths import GENERATING, HttpParts, build_http
from tandem.gateway.web.prepare import Catalog, Preparer
from tandem.gateway.web.token_endpoints import TokenEndpoints
from tandem.rpc import logs
from tandem.rpc.client import open_channel
from tandem.rpc.clock import SystemClock
from tandem.rpc.collecting import spare_what_is_there
from tandem.rpc.control import Controlled, add_control
from tandem.rpc.credentials import Credentials, TlsSettings
from tandem.rpc.exits import ExitCode
from tandem.rpc.loop_lag import measure_lag
from tandem.rpc.metrics import Metrics
from tandem.rpc.metrics_server import HttpServer
from tandem.rpc.run import Stop, announce
from tandem.rpc.server import GrpcServer
from tandem.rpc.tasks import TaskSupervisor
from tandem.rpc.tracing.provider import Tracing
from tandem.rpc.tracing.service import add_trace_service
from tandem.rpc.tracing.settings import TraceSettings
from tandem.rpc.watch import ClusterWatcher, WatchCallbacks
from tandem.v1 import admin_pb2_grpc, siblings_pb2_grpc

log = logging.getLogger(__name__)

_T = TypeVar("_T")

ADMIN_GRACE_MS: Final = 1000
MAX_TRACES_ASKED: Final = 16
"""Traces that are gathered for the dashboard at the same time."""


class Gateway:
    """One gateway. `start`, then `stop`; both on one event loop."""

    def __init__(
        self,
        settings: GatewaySettings,
        tls: TlsSettings,
        encoder: Encoder,
        on_crash: Callable[[str, Exception], None] | None = None,
        trace: TraceSettings | None = None,
        parsers: Parsers | None = None,
        place: Place | None = None,
    ) -> None:
        """on_crash: called if a part stops for good. trace: of the environment if None. parsers: see `load_parsers`.
        place: None = this process is the whole gateway."""
        self._settings = settings
        self._place = place
        credentials = Credentials.from_settings(tls)
        rng = random.Random(secrets.randbits(64))
        metrics = Metrics()
        clock = SystemClock()
        recorder, roster = Recorder(clock, GENERATING), Roster(clock)
        counted = GatewayMetrics(metrics, recorder)
        connect = partial(open_channel, credentials=credentials)
        self._bootstrap = connect(settings.bootstrap_address)
        gateway_id = f"gateway-{secrets.token_hex(8)}"
        self._tracing = Tracing("gateway", gateway_id, trace or TraceSettings.load())
        held, costs = HeldPages(settings.held_pages, rng), PairBook(clock.monotonic)
        self._pool = SessionPool(
            PoolSettings(gateway_id, settings.session_outbox, STATUS_INTERVAL_MS),
            connect,
            rng=rng,
            held=held,
            on_status=partial(saw_status, costs),
            on_others=lambda life, pages, taken: self._decode_room.space.told(life, pages, taken=taken),
        )
        self._watcher = ClusterWatcher(self._bootstrap, rng=rng, callbacks=self._told(roster))
        self._pool.follow(lambda: self._watcher.view, lambda: self._watcher.connected)
        counted.follow(self._pool.standings, lambda: self._watcher.connected)
        counted.follow_held(held.index)
        self._lag = counted.lag
        self._tokenizers = Tokenizers(
            TokenizerPaths(settings.model_path, settings.tokenizers, self._pool.tokenizer_paths),
            PromptTokenizer(encoder, threads=settings.tokenizer_threads),
            loader(HuggingFaceEncoder, settings.tokenizer_threads),
        )
        rooms = RoomBook()
        self._decode_room, self._room = self._admission(counted)
        router = self._build_router(counted, clock, rooms, held, costs)
        self._admin = GrpcServer(credentials=credentials, on_call=metrics.count_rpc, spans=self._tracing)
        traces = ClusterTraces(self._pool, self._tracing, connect)
        servicer = AdminServicer(self._pool, router, self._bootstrap, rooms, counted, traces, self._waiting)
        self._admin.add(admin_pb2_grpc.add_AdminServiceServicer_to_server, servicer, "tandem.v1.AdminService")
        add_trace_service(self._admin, self._tracing)
        add_control(self._admin, Controlled("gateway", (settings, tls)))
        self._looking = TaskSupervisor(max_tasks=MAX_TRACES_ASKED)
        recent = RecentTraces(self._tracing.ring, traces.gather, self._looking.spawn)
        seen = Sources(clock, self._pool, rooms, recorder, roster, recent, self._missing, self._knows, self._room)
        scrape, responses, boards = self._with_siblings(metrics, clock, Board(seen))
        self._feed = Feed(boards.encoded, clock, max_viewers=settings.dashboard_viewers)
        self._http = self._build_http(router, scrape, counted, parsers, responses)
        self._tasks = TaskSupervisor(on_crash=on_crash, max_tasks=3)
        self._serving: asyncio.Task[None] | None = None
        self._draining = False
        self.http_address = ""
        """host:port on which HTTP is served, once started."""
        self.admin_address = ""
        """host:port of AdminService, once started."""

    async def start(self, settle_s: float = 0) -> None:
        """Listens, and starts to follow the cluster. settle_s: most time to become ready before HTTP is served.

        Raises TandemError, OSError where an address can't be bound.
        """
        settings = self._settings
        self.admin_address = self._admin.bind(settings.admin_address)
        listener = None if settle_s else listen(settings, shared=self._place is not None)
        await self._admin.start()
        self._watcher.start()
        if listener is None:
            await self._settled(settle_s)
            listener = listen(settings, shared=self._place is not None)
        self.http_address = f"{settings.host}:{listener.getsockname()[1]}"
        self._serving = self._tasks.spawn(self._http.serve(sockets=[listener]), "http")
        self._tasks.spawn(self._publish_readiness(), "readiness")
        self._tasks.spawn(measure_lag(self._lag.observe), "event loop lag")
        log.info("HTTP on %s, AdminService on %s", self.http_address, self.admin_address)

    async def _settled(self, settle_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(settle_s):
                while self._missing():
                    await self._pool.wait_changed()

    async def stop(self) -> None:
        """Takes no new requests, gives those that run drain_timeout_ms, then ends everything."""
        self._draining = True
        await self._admin.drain()
        self._feed.close()
        self._http.should_exit = True
        if self._serving is not None:
            await self._serving
        await self._watcher.close()
        await self._pool.close()
        await self._admin.stop(ADMIN_GRACE_MS)
        await self._tasks.close()
        await self._looking.close()
        await self._bootstrap.close()
        await self._tokenizers.close()
        await self._tracing.close()

    def _waiting(self) -> int:
        """Requests that no worker has yet."""
        return sum(self._room.waiting().values()) + self._decode_room.space.standing.total()

    def _told(self, roster: Roster) -> WatchCallbacks:
        """Who hears of each change of the cluster."""
        return WatchCallbacks(
            joined=_all(roster.joined, self._pool.joined, lambda info: self._tokenizers.expect(info.models)),
            left=_all(roster.left, self._pool.left),
            changed=_all(roster.joined, self._pool.changed),
        )

    def _with_siblings(self, metrics: Metrics, clock: SystemClock, board: Board) -> tuple[Scrape, Responses, Boards]:
        """What reaches over all processes; where this one is the whole gateway, over itself."""
        settings, siblings = self._settings, None if self._place is None else Siblings(self._place)
        limits = KeepLimits(settings.kept_responses, settings.kept_responses_bytes, settings.kept_responses_age_s)
        store, scrape = ResponseStore(limits, clock.monotonic), Scrape(metrics, siblings)
        boards = Boards(board, siblings)
        if siblings is not None:
            asked = SiblingServicer(scrape.own, boards.own, store)
            self._admin.add(siblings_pb2_grpc.add_SiblingServiceServicer_to_server, asked, SIBLING_SERVICE)
        return scrape, Responses(store, siblings), boards

    def _build_router(
        self, counted: GatewayMetrics, clock: SystemClock, rooms: RoomBook, held: HeldPages, costs: PairBook
    ) -> Router:
        settings = self._settings
        return Router(
            self._pool,
            _routing(settings),
            _policies(settings),
            self._tracing,
            on_retry=counted.count_retry,
            on_resume=counted.resumed.inc,
            on_no_budget=counted.no_budget.inc,
            on_hedge=counted.count_hedge,
            on_picked=counted.queue.observe,
            rooms=rooms,
            health=self._health(clock, counted),
            holders=held,
            on_held=counted.count_held,
            costs=costs,
            room=self._decode_room,
        )

    def _health(self, clock: SystemClock, counted: GatewayMetrics) -> HealthBook:
        settings = self._settings
        breaker = BreakerSettings(
            settings.breaker_failures, settings.breaker_open_ms / 1000, settings.slow_start_ms / 1000
        )
        outliers = OutlierSettings(settings.outlier_excess)
        health = HealthBook(
            breaker,
            clock.monotonic,
            counted.count_breaker,
            outliers,
            lambda role: [info.life for info in self._pool.view.workers.values() if info.role is role],
        )
        counted.follow_breakers(lambda: [(i.role, health.state_of(i.life)) for i in self._pool.view.workers.values()])
        return health

    def _admission(self, counted: GatewayMetrics) -> tuple[DecodeRoom, WaitingRoom]:
        settings = self._settings
        space = DecodeSpace(self._pool.crew, settings.decode_commit, lambda: decode.freed(), self._pool.put_aside)
        decode = DecodeRoom(space, lambda: room.look_again())
        room = WaitingRoom(
            QueueLimits(
                settings.max_concurrent,
                settings.max_queued,
                settings.max_queued_tokens,
                settings.queue_patience_ms / 1000,
            ),
            counted,
            self._tracing,
            space,
        )
        counted.limit.set(settings.max_concurrent)
        counted.follow_waiting(room.waiting, lambda: room.used)
        counted.follow_room(lambda: space.largest_now(self._pool.models()[:MAX_MODELS]))
        return decode, room

    def _missing(self) -> str:
        """What keeps the gateway from being ready; empty if nothing does."""
        if self._draining:
            return "The gateway is shutting down."
        if self._pool.ready():
            return ""
        return "The gateway waits for a prefill and a decode worker of one model, or a unified one."

    def _knows(self) -> bool:
        """Whether bootstrap confirms the view of the cluster."""
        return self._watcher.connected

    async def _publish_readiness(self) -> None:
        while True:
            await self._admin.set_ready(not self._missing())
            self._decode_room.space.changed()
            await self._pool.wait_changed()

    def _build_http(
        self,
        router: Router,
        scrape: Scrape,
        counted: GatewayMetrics,
        parsers: Parsers | None,
        responses: Responses,
    ) -> HttpServer:
        settings = self._settings
        fallback = settings.served_model_name or Path(settings.model_path).name
        catalog = Catalog(self._pool, fallback, settings.served_model_name, frozenset(settings.tokenizers))
        schema = SchemaLimits(settings.max_n, settings.max_batch, settings.max_tokenize_size)
        works = Works(
            preparer=Preparer(catalog, self._tokenizers, default_max_tokens=settings.default_max_tokens),
            router=router,
            reading=Slots(settings.max_concurrent + settings.max_queued),
            room=self._room,
            tenants=Tenants(settings.tenants_file, share=WHOLE if self._place is None else self._place.share),
            metrics=counted,
            limits=GenerationLimits(
                settings.max_body_bytes,
                settings.request_timeout_ms,
                settings.stream_buffer_tokens,
                settings.retry_after_s,
                settings.read_timeout_ms,
            ),
            tracing=self._tracing,
            responses=responses,
            parsers=parsers,
        )
        parts = HttpParts(
            works=works,
            catalog=catalog,
            schema=schema,
            tokens=TokenEndpoints(
                catalog, self._tokenizers, schema, settings.max_body_bytes, Slots(token_endpoints.MAX_AT_ONCE)
            ),
            path_of=self._tokenizers.path_of,
            started=int(time.time()),
            ready=self._missing,
            render_metrics=scrape.render,
            dashboard=Dashboard(self._feed, on=settings.dashboard_viewers > 0),
            cors_origins=settings.cors_origins,
            keys=KeyRing([key.get_secret_value() for key in settings.api_keys], settings.api_keys_file),
        )
        return server_of(build_http(parts), settings)


def _all(*hearers: Callable[[_T], None]) -> Callable[[_T], None]:
    """One that tells all, in turn."""

    def tell(news: _T) -> None:
        for hear in hearers:
            hear(news)

    return tell


async def serve(
    settings: GatewaySettings, tls: TlsSettings, stop: Stop, place: Place | None = None, settle_s: float = 0
) -> int:
    """Runs a gateway until it is asked to stop; returns the exit code. place: if it is one process of several.
    settle_s: see `Gateway.start`."""
    process = "" if place is None else f"process-{place.share.index}"
    logs.setup("gateway", worker_id=process, level=settings.log_level, log_format=settings.log_format)
    trace = TraceSettings.load()
    log.info("settings:\n%s\n%s\n%s", settings.describe(), tls.describe(), trace.describe())
    try:
        encoder = await asyncio.to_thread(HuggingFaceEncoder, settings.model_path)
        parsers = await asyncio.to_thread(load_parsers, settings, encoder)
        gateway = Gateway(settings, tls, encoder, partial(_crashed, stop), trace, parsers, place)
        spare_what_is_there()
        await gateway.start(settle_s)
    except (TandemError, OSError) as error:
        log.error("the gateway cannot start: %s", error)
        return ExitCode.BAD_SETTINGS
    announce("gateway", gateway.http_address)
    announce("admin", gateway.admin_address)
    announce("url", url_of(settings, gateway.http_address))
    await stop.wait()
    await gateway.stop()
    return stop.code


def _crashed(stop: Stop, name: str, error: Exception) -> None:
    del error  # it is logged
    stop.request(f"{name} crashed", ExitCode.FAILED)


def _policies(settings: GatewaySettings) -> dict[Role, PolicyName]:
    return {
        Role.PREFILL: policy_named(settings.prefill_policy),
        Role.DECODE: policy_named(settings.decode_policy),
        Role.UNIFIED: policy_named(settings.unified_policy),
    }


def _routing(settings: GatewaySettings) -> RouterSettings:
    """What the router needs of them."""
    return RouterSettings(
        settings.max_attempts,
        settings.retry_backoff_ms,
        settings.retry_wait_ms,
        settings.load_cap,
        settings.prefix_tokens,
        BudgetSettings(settings.retry_burst, settings.retry_ratio),
        settings.unified_max_prompt_tokens,
        settings.hedge_after_ms,
    )
