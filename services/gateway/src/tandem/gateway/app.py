"""Builds a gateway from its settings, runs it, and takes it down. Objects are built here and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import uvicorn

from tandem.core.errors import TandemError
from tandem.core.ids import Role
from tandem.core.policies import policy_named
from tandem.gateway.admin import AdminServicer
from tandem.gateway.gateway_metrics import GatewayMetrics
from tandem.gateway.generation import GenerationLimits, Works
from tandem.gateway.http import HttpParts, build_http
from tandem.gateway.keys import KeyRing
from tandem.gateway.openai_schema import SchemaLimits
from tandem.gateway.pool import PoolSettings, SessionPool
from tandem.gateway.prepare import Catalog, Preparer
from tandem.gateway.router import Router, RouterSettings
from tandem.gateway.settings import STATUS_INTERVAL_MS, GatewaySettings
from tandem.gateway.slots import Slots
from tandem.gateway.tokenizer import Encoder, HuggingFaceEncoder, PromptTokenizer
from tandem.rpc import logs
from tandem.rpc.client import open_channel
from tandem.rpc.credentials import Credentials, TlsSettings
from tandem.rpc.exits import ExitCode
from tandem.rpc.metrics import Metrics
from tandem.rpc.run import Stop, announce
from tandem.rpc.server import GrpcServer
from tandem.rpc.tasks import TaskSupervisor
from tandem.rpc.watch import ClusterWatcher, WatchCallbacks
from tandem.v1 import admin_pb2_grpc

log = logging.getLogger(__name__)

ADMIN_GRACE_MS: Final = 1000
LISTEN_BACKLOG: Final = 2048
KEEP_ALIVE_S: Final = 75


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the service has its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


class Gateway:
    """One gateway. `start`, then `stop`; both on one event loop."""

    def __init__(
        self,
        settings: GatewaySettings,
        tls: TlsSettings,
        encoder: Encoder,
        on_crash: Callable[[str, Exception], None] | None = None,
    ) -> None:
        """on_crash: called if a part of the gateway stops for good, with its name and error."""
        self._settings = settings
        credentials = Credentials.from_settings(tls)
        rng = random.Random(secrets.randbits(64))
        metrics = Metrics()
        counted = GatewayMetrics(metrics)
        connect = partial(open_channel, credentials=credentials)
        self._bootstrap = connect(settings.bootstrap_address)
        self._pool = SessionPool(
            PoolSettings(f"gateway-{secrets.token_hex(8)}", settings.session_outbox, STATUS_INTERVAL_MS),
            connect,
            rng=rng,
        )
        callbacks = WatchCallbacks(joined=self._pool.joined, left=self._pool.left, changed=self._pool.changed)
        self._watcher = ClusterWatcher(self._bootstrap, rng=rng, callbacks=callbacks)
        self._pool.follow(lambda: self._watcher.view, lambda: self._watcher.connected)
        self._tokenizer = PromptTokenizer(encoder, threads=settings.tokenizer_threads)
        router = Router(
            self._pool,
            RouterSettings(settings.max_attempts, settings.retry_backoff_ms, settings.retry_wait_ms),
            {Role.PREFILL: policy_named(settings.prefill_policy), Role.DECODE: policy_named(settings.decode_policy)},
            encoder.text,
            on_retry=counted.count_retry,
            on_resume=counted.resumed.inc,
        )
        self._admin = GrpcServer(credentials=credentials, on_call=metrics.count_rpc)
        servicer = AdminServicer(self._pool, router, self._bootstrap)
        self._admin.add(admin_pb2_grpc.add_AdminServiceServicer_to_server, servicer, "tandem.v1.AdminService")
        self._http = self._build_http(router, metrics, counted)
        self._tasks = TaskSupervisor(on_crash=on_crash, max_tasks=2)
        self._serving: asyncio.Task[None] | None = None
        self._draining = False
        self.http_address = ""
        """host:port on which HTTP is served, once started."""
        self.admin_address = ""
        """host:port of AdminService, once started."""

    async def start(self) -> None:
        """Listens, and starts to follow the cluster. Raises TandemError, OSError where an address can't be bound."""
        settings = self._settings
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=LISTEN_BACKLOG)
        self.http_address = f"{settings.host}:{listener.getsockname()[1]}"
        self.admin_address = self._admin.bind(settings.admin_address)
        await self._admin.start()
        self._watcher.start()
        self._serving = self._tasks.spawn(self._http.serve(sockets=[listener]), "http")
        self._tasks.spawn(self._publish_readiness(), "readiness")
        log.info("HTTP on %s, AdminService on %s", self.http_address, self.admin_address)

    async def stop(self) -> None:
        """Takes no new requests, gives those that run drain_timeout_ms, then ends everything."""
        self._draining = True
        await self._admin.drain()
        self._http.should_exit = True
        if self._serving is not None:
            await self._serving
        await self._watcher.close()
        await self._pool.close()
        await self._admin.stop(ADMIN_GRACE_MS)
        await self._tasks.close()
        await self._bootstrap.close()
        self._tokenizer.close()

    def _missing(self) -> str:
        """What keeps the gateway from being ready; empty if nothing does."""
        if self._draining:
            return "The gateway is shutting down."
        if self._pool.ready():
            return ""
        return "The gateway waits for a prefill and a decode worker of one model."

    async def _publish_readiness(self) -> None:
        while True:
            await self._admin.set_ready(not self._missing())
            await self._pool.wait_changed()

    def _build_http(self, router: Router, metrics: Metrics, counted: GatewayMetrics) -> _HttpServer:
        settings = self._settings
        fallback = settings.served_model_name or Path(settings.model_path).name
        catalog = Catalog(self._pool, fallback, only=settings.served_model_name)
        works = Works(
            preparer=Preparer(catalog, self._tokenizer, default_max_tokens=settings.default_max_tokens),
            router=router,
            slots=Slots(settings.max_concurrent, on_change=counted.in_flight.set),
            metrics=counted,
            token_text=self._tokenizer.token_text,
            limits=GenerationLimits(
                settings.max_body_bytes,
                settings.request_timeout_ms,
                settings.stream_buffer_tokens,
                settings.retry_after_s,
            ),
        )
        parts = HttpParts(
            works=works,
            catalog=catalog,
            schema=SchemaLimits(settings.max_n, settings.max_batch),
            model_path=settings.model_path,
            started=int(time.time()),
            ready=self._missing,
            render_metrics=metrics.render,
            keys=KeyRing([key.get_secret_value() for key in settings.api_keys], settings.api_keys_file),
        )
        config = uvicorn.Config(
            build_http(parts),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, settings.drain_timeout_ms // 1000),
        )
        return _HttpServer(config)


async def serve(settings: GatewaySettings, tls: TlsSettings, stop: Stop) -> int:
    """Runs a gateway until it is asked to stop; returns the exit code."""
    logs.setup("gateway", level=settings.log_level, log_format=settings.log_format)
    log.info("settings:\n%s\n%s", settings.describe(), tls.describe())
    try:
        encoder = await asyncio.to_thread(HuggingFaceEncoder, settings.model_path)
        gateway = Gateway(settings, tls, encoder, lambda name, _: stop.request(f"{name} crashed", ExitCode.FAILED))
        await gateway.start()
    except (TandemError, OSError) as error:
        log.error("the gateway cannot start: %s", error)
        return ExitCode.BAD_SETTINGS
    announce("gateway", gateway.http_address)
    announce("admin", gateway.admin_address)
    await stop.wait()
    await gateway.stop()
    return stop.code


async def main(stop: Stop) -> int:
    """Runs a gateway with the settings of its environment."""
    return await serve(GatewaySettings.load(), TlsSettings.load(), stop)
