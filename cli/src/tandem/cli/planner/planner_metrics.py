"""What `tandem planner` tells Prometheus."""

from __future__ import annotations

from tandem.core.planner.advice import Advice, Bound, Change
from tandem.core.planner.loads import Snapshot
from tandem.core.planner.steering import Planner
from tandem.rpc.metrics import Metrics
from tandem.rpc.process_metrics import add_process_metrics

OUTCOMES = ("succeeded", "failed")


class PlannerMetrics:
    """The planner's metrics. docs/metrics.md lists them."""

    def __init__(self) -> None:
        self.metrics = metrics = Metrics()
        self.lag = add_process_metrics(metrics, "planner")
        self._wanted = metrics.gauge("tandem_planner_wanted_workers", "Workers that there should be.", ("role",))
        self._workers = metrics.gauge("tandem_planner_workers", "Workers that take rooms.", ("role",))
        self._pressure = metrics.gauge(
            "tandem_planner_pressure",
            "Demand for workers by each that is there, a mean; 1: they just keep up.",
            ("role",),
        )
        self._held_back = metrics.gauge(
            "tandem_planner_held_back", "1 for what keeps a change back now, 0 for all else.", ("bound",)
        )
        self._advice = metrics.counter("tandem_planner_advice", "Changes that were advised.", ("change",))
        self._applied = metrics.counter("tandem_planner_applied", "Changes that the command made.", ("outcome",))
        self._connected = metrics.gauge("tandem_planner_connected", "1 while the gateway is heard.", ("gateway",))
        for change in Change:
            if change is not Change.KEEP:
                self._advice.labels(change.value)
        for outcome in OUTCOMES:
            self._applied.labels(outcome)

    def saw(self, seen: Snapshot, planner: Planner, advice: Advice) -> None:
        """After a look."""
        for bound in Bound:
            self._held_back.labels(bound.value).set(bound is advice.held_by)
        for role, load in seen.roles.items():
            self._workers.labels(role.value).set(load.workers)
            self._pressure.labels(role.value).set(load.pressure)
        for role, count in planner.wanted.items():
            self._wanted.labels(role.value).set(count)

    def hears(self, gateway: str, *, heard: bool) -> None:
        """gateway: address of its AdminService."""
        self._connected.labels(gateway).set(heard)

    def advised(self, advice: Advice) -> None:
        """A change is said."""
        self._advice.labels(advice.change.value).inc()

    def applied(self, *, well: bool) -> None:
        """The command has ended."""
        self._applied.labels(OUTCOMES[0] if well else OUTCOMES[1]).inc()
