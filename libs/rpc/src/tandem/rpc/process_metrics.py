"""What every service tells of its own process: its version, what it uses, and how late its event loop is."""

from __future__ import annotations

from importlib import metadata
from typing import Final

import prometheus_client as prometheus

from tandem.core.version import CURRENT
from tandem.rpc.loop_lag import LAG_INTERVAL_S
from tandem.rpc.metrics import Family, Kind, Metrics

LAG_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of buckets, in seconds."""
PROCESS: Final = (
    Family("process_virtual_memory_bytes", Kind.GAUGE, "Virtual memory of the process."),
    Family("process_resident_memory_bytes", Kind.GAUGE, "Resident memory of the process, KV pools included."),
    Family("process_start_time_seconds", Kind.GAUGE, "When the process started, in seconds since 1970."),
    Family("process_cpu_seconds", Kind.COUNTER, "Processor time that the process has used."),
    Family("process_open_fds", Kind.GAUGE, "File descriptors that the process has open."),
    Family("process_max_fds", Kind.GAUGE, "File descriptors that it may have open."),
)
"""What prometheus_client tells of a process, under the names that it shares with others."""


def add_process_metrics(metrics: Metrics, service: str) -> prometheus.Histogram:
    """Adds what every process has. Returns the histogram for tandem.rpc.loop_lag.measure_lag."""
    build = metrics.gauge(
        "tandem_build_info", "Always 1; its labels tell what runs.", ("service", "version", "protocol")
    )
    build.labels(service, metadata.version("tandem-rpc"), str(CURRENT)).set(1)
    metrics.families += PROCESS
    prometheus.ProcessCollector(registry=metrics.registry)
    return metrics.histogram(
        "tandem_event_loop_lag_seconds",
        f"How late the event loop runs what is due, looked at every {LAG_INTERVAL_S} s.",
        LAG_S,
    )
