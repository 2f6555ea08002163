"""Rows of the table of workers: pure functions over the view, the Sessions and what workers say of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tandem.core.cluster import WorkerInfo
from tandem.core.ids import Role, WorkerId
from tandem.gateway.dashboard.roster import LostWorker
from tandem.gateway.routing.pool import State
from tandem.v1 import session_pb2

KV_POOL: Final = "kv"
_ROLES: Final = [role.value for role in Role]


@dataclass(frozen=True, slots=True)
class KnownWorker:
    """What the gateway holds of a worker in its view."""

    info: WorkerInfo
    up: bool
    """Whether its Session is open."""
    in_flight: int
    """Rooms of this gateway on it, of all its processes."""
    status: session_pb2.WorkerStatus | None
    heard_at: float | None
    """Monotonic seconds of its last status."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages of a worker's KV pool; free + cached + used == total."""

    total: int
    free: int
    cached: int
    """Hold a prefix that nobody uses: free for who needs them."""
    used: int
    granted: int
    """Of the used ones, those that a peer may write now."""


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker."""

    id: str
    role: str
    state: State
    incarnation: str
    """Too large for a number in a browser."""
    models: tuple[str, ...]
    in_flight: int
    heard_ms: int | None
    """Since its last status, which a worker sends when it changes; of a lost one, since it was missed. None = never."""
    running: int | None
    """This and all below: None = it says nothing at the moment."""
    queued: int | None
    open_rooms: int | None
    succeeded: int | None
    failed: int | None
    checksum_failures: int | None
    pages: Pages | None
    kv_bytes_per_s: float | None
    """Over all its links; bytes that prefill sent, or decode received."""


def worker_rows(
    known: Iterable[KnownWorker], lost: Iterable[LostWorker], rates: Mapping[WorkerId, float], now: float
) -> list[WorkerRow]:
    """Workers in the view and those that were lost, by role, by id.

    rates: KV bytes per second, as far as they are known. now: monotonic seconds.
    """
    rows = [_known_row(one, rates, now) for one in known] + [_lost_row(one, now) for one in lost]
    return sorted(rows, key=lambda row: (_ROLES.index(row.role), row.id))


def _known_row(one: KnownWorker, rates: Mapping[WorkerId, float], now: float) -> WorkerRow:
    status = one.status if one.up else None
    draining = one.info.draining or (status is not None and status.draining)
    alive = State.DRAINING if draining else State.READY
    return WorkerRow(
        id=one.info.worker_id,
        role=one.info.role.value,
        state=alive if one.up else State.LOST,
        incarnation=str(one.info.life.incarnation),
        models=one.info.models,
        in_flight=one.in_flight,
        heard_ms=None if one.heard_at is None else _ms(now - one.heard_at),
        running=None if status is None else status.running,
        queued=None if status is None else status.waiting,
        open_rooms=None if status is None else status.open_rooms,
        succeeded=None if status is None else status.rooms_succeeded,
        failed=None if status is None else status.rooms_failed,
        checksum_failures=None if status is None else status.checksum_failures,
        pages=None if status is None else _pages(status),
        kv_bytes_per_s=None if status is None else rates.get(one.info.worker_id),
    )


def _lost_row(one: LostWorker, now: float) -> WorkerRow:
    return WorkerRow(
        id=one.info.worker_id,
        role=one.info.role.value,
        state=State.LOST,
        incarnation=str(one.info.life.incarnation),
        models=one.info.models,
        in_flight=0,
        heard_ms=_ms(now - one.since),
        running=None,
        queued=None,
        open_rooms=None,
        succeeded=None,
        failed=None,
        checksum_failures=None,
        pages=None,
        kv_bytes_per_s=None,
    )


def _pages(status: session_pb2.WorkerStatus) -> Pages | None:
    for pool in status.pools:
        if pool.name == KV_POOL:
            # An engine may count between two of its own steps; a bar must not leave its frame.
            used = max(0, pool.total - pool.free - pool.evictable)
            return Pages(pool.total, pool.free, pool.evictable, used, pool.granted)
    return None


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
