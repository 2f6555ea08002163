"""Builds WorkerInfos that bootstrap accepts; tests change the field that they are about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tandem.core.cluster import RankEndpoint, WorkerInfo
from tandem.core.ids import Incarnation, RankId, Role, WorkerId, WorkerLife
from tandem.core.layout import KvLayout, PoolLayout
from tandem.core.version import CURRENT

LAYOUT = KvLayout(
    page_size=16,
    dtype="float32",
    layers=2,
    memory_order="nhd",
    tp_size=1,
    pp_size=1,
    pools=(PoolLayout("kv", (4096, 4096), 100), PoolLayout("metadata", (512,), 64)),
)


def worker(worker_id: str = "p0", role: Role = Role.PREFILL, incarnation: int = 0, **changes: Any) -> WorkerInfo:
    """A worker with one rank."""
    info = WorkerInfo(
        life=WorkerLife(WorkerId(worker_id), Incarnation(incarnation)),
        role=role,
        models=("tiny",),
        address="127.0.0.1:5000",
        layout=LAYOUT,
        ranks=(RankEndpoint(RankId(), "127.0.0.1:6000" if role is Role.PREFILL else ""),),
        context_tokens=2048,
        max_running=8,
        total_pages=100,
        protocol=CURRENT,
    )
    return replace(info, **changes)


def instance(number: int) -> bytes:
    """Name of the life of a process, 16 bytes."""
    return number.to_bytes(16, "big")
