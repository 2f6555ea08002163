"""Bootstrap and the leases of workers: tandem.core's registry on the virtual clock, and its views at the gateways."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from tandem.cli.sim.agenda import Agenda
from tandem.cli.sim.life import Life
from tandem.cli.sim.network import Network
from tandem.cli.sim.worker import PAGES, Worker
from tandem.core.cluster import ClusterView, RankEndpoint, WorkerInfo
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RankId, Role, WorkerLife
from tandem.core.layout import KvLayout, PoolLayout
from tandem.core.registry import Change, Registry, RegistryLimits
from tandem.core.version import CURRENT

BOOTSTRAP: Final = "bootstrap"
LIMITS: Final = RegistryLimits(lease_ttl_ms=1500, grace_ms=300)
BEATS_PER_LEASE: Final = 3
_LAYOUT: Final = KvLayout(16, "float32", 2, "nhd", 1, 1, (PoolLayout("kv", (4096, 4096), PAGES),))


def description(life: Life, role: Role) -> WorkerInfo:
    """What a life registers as."""
    link = "127.0.0.1:6000" if role is Role.PREFILL else ""
    return WorkerInfo(
        life=WorkerLife(life.worker_id, life.incarnation),
        role=role,
        models=("tiny",),
        address="127.0.0.1:5000",
        layout=_LAYOUT,
        ranks=(RankEndpoint(RankId(), link),),
        context_tokens=PAGES * 16,
        max_running=8,
        total_pages=PAGES,
        protocol=CURRENT,
    )


class Bootstrap:
    """The registry, through restarts that empty it."""

    def __init__(self, agenda: Agenda, network: Network) -> None:
        self._agenda = agenda
        self._network = network
        self._watchers: dict[str, Callable[[ClusterView], None]] = {}
        self._views: dict[str, ClusterView] = {}
        self._lives = 0
        self._registry: Registry | None = None
        self.restart()

    @property
    def up(self) -> bool:
        """Whether it runs."""
        return self._registry is not None

    def crash(self) -> None:
        """Forgets everybody."""
        self._registry = None

    def restart(self) -> None:
        """Starts with an empty registry."""
        self._lives += 1
        self._registry = Registry(LIMITS, self._changed)

    def watch(self, gateway: str, changed: Callable[[ClusterView], None]) -> None:
        """A gateway that is told of every view."""
        self._watchers[gateway] = changed
        self._views[gateway] = ClusterView()
        self._publish(gateway)

    def enrol(self, worker: Worker, life: Life) -> None:
        """Registers a life and keeps its lease for as long as it lives."""

        def beat() -> None:
            if not life.alive:
                return
            if not life.stopped and self.up and self._network.reaches(worker.worker_id, BOOTSTRAP):
                self._hear(worker, life)
            wait_s = LIMITS.lease_ttl_ms / 1000 / BEATS_PER_LEASE
            self._agenda.after(wait_s, f"{life} beats", lambda: life.when_it_goes_on(beat))

        beat()

    def _hear(self, worker: Worker, life: Life) -> None:
        registry, now = self._registry, self._agenda.now
        assert registry is not None, "a heartbeat without a registry"
        try:
            if life.incarnation:
                registry.heartbeat(WorkerLife(life.worker_id, life.incarnation), now)
            else:
                self._register(registry, worker, life)
        except TandemError as error:
            if error.reason is not ErrorReason.NOT_REGISTERED:
                raise
            self._register(registry, worker, life)
        self._watch_over(registry)

    def _register(self, registry: Registry, worker: Worker, life: Life) -> None:
        info = description(life, worker.role)
        wall_ms = int(self._agenda.now * 1000) + 1
        life.incarnation = registry.register(info, life.instance, self._agenda.now, wall_ms)

    def _watch_over(self, registry: Registry) -> None:
        """Looks again when this lease, and the grace after it, could be over."""
        wait_s = (LIMITS.lease_ttl_ms + LIMITS.grace_ms) / 1000

        def look() -> None:
            if registry is self._registry:
                registry.expire(self._agenda.now)

        self._agenda.after(wait_s, "leases are looked at", look)

    def _changed(self, change: Change) -> None:
        for gateway in self._watchers:
            self._network.call(BOOTSTRAP, gateway, f"revision {change.revision}", partial(self._publish, gateway))

    def _publish(self, gateway: str) -> None:
        registry = self._registry
        if registry is None or gateway not in self._watchers:
            return
        view = self._views[gateway].with_snapshot(self._lives, registry.revision, registry.workers())
        self._show(gateway, view)
        if view.carried:
            lease_s, shown = LIMITS.lease_ttl_ms / 1000, view.store_incarnation
            self._agenda.after(lease_s, f"{gateway} drops carried workers", lambda: self._drop(gateway, shown))

    def _drop(self, gateway: str, store: int) -> None:
        view = self._views[gateway]
        if view.store_incarnation == store:
            self._show(gateway, view.without_carried())

    def _show(self, gateway: str, view: ClusterView) -> None:
        self._views[gateway] = view
        self._watchers[gateway](view)
