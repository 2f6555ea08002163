"""Prometheus metrics of one process."""

from __future__ import annotations

from collections.abc import Sequence

import prometheus_client as prometheus


class Metrics:
    """A registry of its own, so that two services in one process (tests) do not share counters."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._rpc_calls = self.counter(
            "tandem_rpc_calls", "RPCs served, by method and status code.", ("method", "code")
        )

    def counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> prometheus.Counter:
        """A count that only rises; Prometheus adds `_total` to its name."""
        return prometheus.Counter(name, documentation, labels, registry=self.registry)

    def gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> prometheus.Gauge:
        """A value that rises and falls."""
        return prometheus.Gauge(name, documentation, labels, registry=self.registry)

    def histogram(
        self, name: str, documentation: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> prometheus.Histogram:
        """A distribution; `buckets` are upper bounds in the unit that the name says."""
        return prometheus.Histogram(name, documentation, labels, buckets=buckets, registry=self.registry)

    def count_rpc(self, method: str, code: str) -> None:
        """Hook for tandem.rpc.server.GrpcServer: one RPC ended with this status code."""
        self._rpc_calls.labels(method, code).inc()

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return prometheus.generate_latest(self.registry)
