"""What bootstrap tells operators: itself, and who is in the cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from tandem.core.cluster import Event, Joined, LeaveReason, Left, WorkerInfo
from tandem.core.ids import Role
from tandem.rpc.metrics import Family, Kind, Metrics, Sample
from tandem.rpc.process_metrics import add_process_metrics

WORKERS: Final = Family(
    "tandem_bootstrap_workers",
    Kind.GAUGE,
    "Registered workers by role and state: ready or draining.",
    ("role", "state"),
)
WATCHERS: Final = Family("tandem_bootstrap_watchers", Kind.GAUGE, "Gateways and workers that watch the cluster.")


class BootstrapMetrics:
    """Bootstrap's metrics."""

    def __init__(self, workers: Callable[[], Sequence[WorkerInfo]], watchers: Callable[[], int]) -> None:
        """workers: who is registered now. watchers: how many watch."""
        self.metrics = metrics = Metrics()
        self.lag = add_process_metrics(metrics, "bootstrap")
        self._joins = metrics.counter("tandem_bootstrap_joins", "Workers that joined, or told new facts of themselves.")
        self._leaves = metrics.counter(
            "tandem_bootstrap_leaves",
            "Workers that left: deregistered, expired (silent for a lease) or replaced (by a newer life).",
            ("reason",),
        )
        for reason in LeaveReason:
            self._leaves.labels(reason.value)
        metrics.read((WORKERS, WATCHERS), lambda: _samples(workers(), watchers()))

    def changed(self, event: Event) -> None:
        """Somebody joined or left."""
        match event:
            case Joined():
                self._joins.inc()
            case Left(_, reason):
                self._leaves.labels(reason.value).inc()


def _samples(workers: Sequence[WorkerInfo], watchers: int) -> Iterator[Sample]:
    found = Counter((info.role, info.draining) for info in workers)
    for role in Role:
        yield Sample(WORKERS, found[role, False], (role.value, "ready"))
        yield Sample(WORKERS, found[role, True], (role.value, "draining"))
    yield Sample(WATCHERS, watchers)
