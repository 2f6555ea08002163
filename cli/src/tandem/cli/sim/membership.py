"""Bootstrap and the leases of workers: tandem.core's registry on the virtual clock, and its views at the gateways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tandem.cli.sim.agenda import Agenda
from tandem.cli.sim.life import Life
from tandem.cli.sim.network import DELAY_S, Network
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
WATCH_AGAIN_S: Final = 0.3
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


class _Watcher:
    """A gateway's view, through restarts of the store."""

    def __init__(self, gateway: str, changed: Callable[[ClusterView], None]) -> None:
        self.gateway = gateway
        self.view = ClusterView()
        self.newest = (0, 0)
        """Life and revision of the store that was heard last: what is overtaken is dropped."""
        self._changed = changed

    def show(self, view: ClusterView) -> None:
        """Another view."""
        self.view = view
        self._changed(view)


class Bootstrap:
    """The registry, through restarts that empty it."""

    def __init__(self, agenda: Agenda, network: Network) -> None:
        self._agenda = agenda
        self._network = network
        self._watchers: dict[str, _Watcher] = {}
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
        for watcher in self._watchers.values():
            self._tell(watcher)

    def watch(self, gateway: str, changed: Callable[[ClusterView], None]) -> None:
        """A gateway that is told of every view."""
        watcher = self._watchers[gateway] = _Watcher(gateway, changed)
        self._tell(watcher)

    def forget(self, gateway: str) -> None:
        """A gateway that is gone."""
        del self._watchers[gateway]

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
        for watcher in self._watchers.values():
            self._tell(watcher)

    def _tell(self, watcher: _Watcher) -> None:
        """Sends the workers of this moment. A watcher that is parted asks again until it hears of one."""
        registry, store = self._registry, self._lives
        if registry is None or self._watchers.get(watcher.gateway) is not watcher:
            return
        revision, workers = registry.revision, registry.workers()

        def arrive() -> None:
            if self._watchers.get(watcher.gateway) is not watcher:
                return
            if not self._network.reaches(BOOTSTRAP, watcher.gateway):
                self._agenda.after(WATCH_AGAIN_S, f"{watcher.gateway} watches again", lambda: self._tell(watcher))
            elif (store, revision) >= watcher.newest:
                watcher.newest = (store, revision)
                watcher.show(watcher.view.with_snapshot(store, revision, workers))
                if watcher.view.carried:
                    lease_s = LIMITS.lease_ttl_ms / 1000
                    self._agenda.after(lease_s, f"{watcher.gateway} drops carried workers", drop)

        def drop() -> None:
            if watcher.view.store_incarnation == store:
                watcher.show(watcher.view.without_carried())

        self._agenda.soon(DELAY_S, f"{BOOTSTRAP} -> {watcher.gateway}: revision {revision}", arrive)
