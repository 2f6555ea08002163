"""One frame of `tandem top`: a pure function of the newest two messages of AdminService.WatchCluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tandem.cli.rooms import phase_name
from tandem.v1 import admin_pb2, common_pb2

Message = admin_pb2.WatchClusterResponse

BAR: Final = 10
"""Cells of the bar of pages."""
UNKNOWN: Final = "-"
_ROLES: Final = (
    (common_pb2.ROLE_PREFILL, "prefill"),
    (common_pb2.ROLE_DECODE, "decode"),
    (common_pb2.ROLE_UNIFIED, "unified"),
)
_HOT: Final = 0.9
"""Share of pages in use from which the bar is red."""


@dataclass(frozen=True, slots=True)
class _Column:
    """One of the table; widths in cells."""

    title: str
    number: bool = False
    least: int | None = None


_COLUMNS: Final = (
    _Column("worker"),
    _Column("run/wait", number=True, least=8),
    _Column("load", number=True, least=4),
    _Column("pages in use", least=BAR + len(" 100%")),
    _Column("kv GB/s", number=True, least=7),
    _Column("ok/failed", number=True, least=9),
    _Column("links"),
)


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two messages; None where that can't be told."""

    requests_per_s: float | None = None
    errors_per_s: float | None = None
    tokens_per_s: float | None = None
    ttft_ms: float | None = None
    """Mean over the requests whose first token came in between."""
    kv_gb_per_s: dict[str, float] | None = None
    """Worker id to 10^9 bytes per second."""


def rates(before: Message | None, now: Message) -> Rates:
    """Without an earlier message, or where counters began anew in between, nothing can be told."""
    if before is None or now.at_ms <= before.at_ms or now.requests < before.requests:
        return Rates()
    seconds = (now.at_ms - before.at_ms) / 1000
    started = now.first_tokens - before.first_tokens
    moved = {(one.worker.worker_id, one.worker.incarnation): one.kv_bytes for one in before.workers if one.known}
    return Rates(
        requests_per_s=(now.requests - before.requests) / seconds,
        errors_per_s=(now.errors - before.errors) / seconds,
        tokens_per_s=(now.completion_tokens - before.completion_tokens) / seconds,
        ttft_ms=(now.first_tokens_ms - before.first_tokens_ms) / started if started > 0 else None,
        kv_gb_per_s={
            one.worker.worker_id: (one.kv_bytes - moved[life]) / seconds / 1e9
            for one in now.workers
            if one.known and (life := (one.worker.worker_id, one.worker.incarnation)) in moved
        },
    )


def frame(where: str, before: Message | None, now: Message) -> RenderableType:
    """Fits 80 columns. where: address of the gateway."""
    told = rates(before, now)
    return Group(_head(where, now, told), _rooms(now), Text(), _workers(now, told))


def _head(where: str, now: Message, told: Rates) -> Text:
    ttft = UNKNOWN if told.ttft_ms is None else f"{told.ttft_ms:.0f} ms"
    numbers = (
        f"requests {_rate(told.requests_per_s)}/s  errors {_rate(told.errors_per_s)}/s  "
        f"tokens {_rate(told.tokens_per_s)}/s  TTFT {ttft}"
    )
    policies = f"policy of prefill {now.prefill_policy}, of decode {now.decode_policy}"
    head = Text.assemble((f"gateway {where}", "bold"), f"  {policies}\n", no_wrap=True, overflow="ellipsis")
    return head.append(numbers, style="red" if told.errors_per_s else "")


def _rooms(now: Message) -> Text:
    phases = ", ".join(f"{phase_name(count.phase)} {count.rooms}" for count in now.rooms)
    total = sum(count.rooms for count in now.rooms)
    return Text(f"rooms {total}" + (f": {phases}" if phases else ""))


def _workers(now: Message, told: Rates) -> RenderableType:
    if not now.workers:
        return Text("No worker is registered.", style="yellow")
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in _COLUMNS:
        table.add_column(
            column.title,
            header_style="dim",
            no_wrap=True,
            overflow="ellipsis",
            justify="right" if column.number else "left",
            min_width=column.least,
        )
    for role, name in _ROLES:
        for worker in now.workers:
            if worker.role == role:
                table.add_row(*_cells(worker, name, told))
    return table


def _cells(worker: admin_pb2.WorkerNumbers, role: str, told: Rates) -> list[RenderableType]:
    name = worker.worker.worker_id
    shown = name if name.startswith(role) else f"{name} ({role})"
    load = f"{worker.in_flight / worker.max_running:.0%}" if worker.max_running else UNKNOWN
    state = _state(worker)
    if not worker.known:
        return [shown, UNKNOWN, load, UNKNOWN, UNKNOWN, UNKNOWN, state]
    links = " ".join(f"{link.provider} {link.links}" for link in worker.links)
    speed = (told.kv_gb_per_s or {}).get(name)
    return [
        shown,
        f"{worker.running}/{worker.waiting}",
        load,
        _bar(worker),
        UNKNOWN if speed is None else f"{speed:.2f}",
        f"{worker.rooms_succeeded}/{worker.rooms_failed}",
        Text.assemble(state, " " if state and links else "", links),
    ]


def _state(worker: admin_pb2.WorkerNumbers) -> Text:
    """What is worth a word."""
    if not worker.up:
        return Text("no Session", style="red")
    if worker.breaker in (admin_pb2.BREAKER_STATE_OPEN, admin_pb2.BREAKER_STATE_HALF_OPEN):
        return Text("failing", style="red")
    return Text("draining", style="yellow") if worker.draining else Text()


def _bar(worker: admin_pb2.WorkerNumbers) -> Text:
    """Pages that are neither free nor a cache that nobody uses."""
    if not worker.pages_total:
        return Text(UNKNOWN)
    share = 1 - worker.pages_free / worker.pages_total
    cells = round(share * BAR) or (1 if share > 0 else 0)
    style = "red" if share >= _HOT else "green"
    return Text.assemble(("█" * cells, style), ("░" * (BAR - cells), "dim"), f" {share:.0%}")


def _rate(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}"
