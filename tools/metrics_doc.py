"""Writes docs/metrics.md from the metrics that each service makes: `python -m tools.metrics_doc`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tandem.bootstrap.bootstrap_metrics import BootstrapMetrics
from tandem.cli.planner.planner_metrics import PlannerMetrics
from tandem.core.ids import Role
from tandem.core.kv_index import KvIndex
from tandem.engine.worker.worker_metrics import WorkerMetrics
from tandem.gateway.gateway_metrics import GatewayMetrics
from tandem.rpc.metrics import Family, Kind, Metrics

ROOT: Final = Path(__file__).resolve().parents[1]
DOCUMENT: Final = ROOT / "docs" / "metrics.md"
SERVICES: Final = ("gateway", "bootstrap", "prefill", "decode", "unified", "planner")
SECTIONS: Final = {
    SERVICES: "Every service",
    SERVICES[:-1]: "Every service that answers RPCs",
    ("gateway",): "Gateway",
    ("bootstrap",): "Bootstrap",
    ("prefill", "decode", "unified"): "Workers",
    ("prefill", "decode"): "Prefill and decode",
    ("prefill",): "Prefill only",
    ("decode",): "Decode only",
    ("unified",): "Unified only",
    ("planner",): "Planner",
}
"""Title by the services that have a metric, in the order of the document."""
UNITS: Final = ("seconds", "bytes")
"""What a name ends with; everything else is a number of what the name says."""
LABELS: Final = {
    "bound": "what keeps a change back: [planner.md](planner.md)",
    "change": "`move`, `add` or `remove`",
    "class": "class of priority: `high`, `normal` or `low`",
    "code": "HTTP status; of `tandem_rpc_calls_total`: name of the gRPC status",
    "direction": "`sent` or `received`",
    "endpoint": "path of the HTTP endpoint, or `other`",
    "gateway": "host:port of its AdminService, as it was given to the planner",
    "kind": "`prompt` or `completion`",
    "limit": "what a request came up against: [admission.md](admission.md)",
    "method": "full name of the gRPC method",
    "model": "name of the model; `other` beyond the first 64",
    "outcome": "`succeeded` or `failed`",
    "peer": "worker id of the other side; `other` for all that come after the first 512",
    "pool": "`kv`, `metadata`, or a state component such as `state:0:swa`",
    "protocol": "version of tandem.v1 that it speaks",
    "provider": "`cma`, `verbs`, `tcp` or `fake`",
    "rank": "`dp0.pp0.tp0`",
    "reason": "of an error: as in [errors.md](errors.md); of leaving: `deregistered`, `expired` or `replaced`",
    "role": "`prefill`, `decode` or `unified`",
    "service": "`gateway`, `bootstrap`, `prefill`, `decode`, `unified` or `planner`",
    "state": "see the metric; of rooms: as in [ARCHITECTURE.md](../ARCHITECTURE.md#the-room-machines), in lower case",
    "version": "version of Tandem",
    "won": "`true` or `false`",
}
"""What each label's values are. All of them are bounded."""
INTRO: Final = """\
# Metrics

Each service answers `GET /metrics` in Prometheus' text format: the gateway on the port of its HTTP, the others on a
port of their own.

| service | where | setting |
|---|---|---|
| gateway | port of its HTTP; with a key where `TANDEM_GATEWAY_API_KEYS` has any | `TANDEM_GATEWAY_PORT` |
| bootstrap | plain HTTP on loopback, at a free port that the log names | `TANDEM_BOOTSTRAP_METRICS_ADDRESS` |
| prefill | the same | `TANDEM_PREFILL_METRICS_ADDRESS` |
| decode | the same | `TANDEM_DECODE_METRICS_ADDRESS` |
| unified | the same | `TANDEM_UNIFIED_METRICS_ADDRESS` |
| planner | the same | `TANDEM_PLANNER_METRICS_ADDRESS` |

These are the defaults; an empty address turns it off. `tandem up` writes the addresses to its state file, as `metrics`
of each process. Metrics hold no prompts, answers or secrets, but names of workers. Who can reach a port can read them.

- `deploy/prometheus/prometheus.yml` collects them in containers, `deploy/prometheus/alerts.yml` has alerts, and
  `deploy/grafana/tandem.json` is a dashboard for Grafana.
- A worker asks every rank of its engine when it is scraped. What counts is kept by the ranks from their start, so
  nothing is lost between two scrapes. A rank that ends takes its worker along, so counts begin at 0 together.
- A gateway of several processes tells of all in one scrape, each series but `tandem_gateway_processes` with the label
  `gateway_process` ([processes.md](processes.md)).
- Sums over rooms count a room once per rank: with tensor parallel ranks, each moves its share.
- Series of a peer, a provider, a reason, an endpoint or a method appear when it is first seen.
- Bytes per second: `rate(tandem_kv_bytes_total[1m])` is what a link carries;
  `rate(tandem_kv_bytes_total[1m]) / rate(tandem_kv_chunk_seconds_sum[1m])` on prefill is how fast one transfer is.

Written by `python -m tools.metrics_doc` from the code. A test compares it with what running services answer.
"""


def families() -> dict[str, list[Family]]:
    """Everything that each service has."""
    gateway = Metrics()
    counted = GatewayMetrics(gateway)
    counted.follow(tuple, lambda: False)
    counted.follow_breakers(tuple)
    counted.follow_waiting(dict, int)
    counted.follow_room(dict)
    counted.follow_held(KvIndex(0))
    return {
        "gateway": gateway.families,
        "bootstrap": BootstrapMetrics(tuple, int).metrics.families,
        "prefill": WorkerMetrics(Role.PREFILL).metrics.families,
        "decode": WorkerMetrics(Role.DECODE).metrics.families,
        "unified": WorkerMetrics(Role.UNIFIED).metrics.families,
        # It asks, and answers nobody but Prometheus.
        "planner": [family for family in PlannerMetrics().metrics.families if family.name != "tandem_rpc_calls"],
    }


def holders(found: dict[str, list[Family]]) -> dict[Family, tuple[str, ...]]:
    """Which services have a metric, for each."""
    held: dict[Family, tuple[str, ...]] = {}
    for service in SERVICES:
        for family in found[service]:
            held[family] = (*held.get(family, ()), service)
    return held


def unit(family: Family) -> str:
    """Of its values."""
    ending = family.name.rpartition("_")[2]
    if ending in UNITS:
        return ending
    return "0 or 1" if family.meaning.startswith(("1 ", "Always 1")) else "number"


def document() -> str:
    """The whole page."""
    held, parts = holders(families()), [INTRO]
    for services, title in SECTIONS.items():
        parts.append(f"\n## {title}\n\n| metric | type | labels | unit | meaning |\n|---|---|---|---|---|\n")
        parts += [_row(family) for family, holding in held.items() if holding == services]
    parts.append("\n## Labels\n\n| label | values |\n|---|---|\n")
    parts += [f"| `{name}` | {values} |\n" for name, values in LABELS.items()]
    return "".join(parts)


def _row(family: Family) -> str:
    labels = ", ".join(f"`{name}`" for name in family.labels)
    return f"| `{family.exposed}` | {family.kind.value} | {labels} | {unit(family)} | {family.meaning} |\n"


def series(family: Family) -> Iterator[str]:
    """Names under which a metric can be queried."""
    if family.kind is Kind.HISTOGRAM:
        yield from (f"{family.name}_{part}" for part in ("bucket", "sum", "count"))
    else:
        yield family.exposed


def main() -> None:
    """Writes the page. That it is up to date is checked by tests/unit/docs."""
    DOCUMENT.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
