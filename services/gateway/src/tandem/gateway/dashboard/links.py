"""Rows of the table of links: which provider, and how fast pages move, from what workers say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tandem.core.ids import Role, WorkerId, WorkerLife
from tandem.gateway.dashboard.workers import KnownWorker


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one life of a worker said of its links at one moment."""

    life: WorkerLife
    role: Role
    kv_bytes: int
    """Moved and verified since it began to live, over all its links."""
    providers: Mapping[WorkerId, str]
    """By peer."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What all workers said at one moment."""

    time: float
    """Monotonic seconds."""
    workers: Mapping[WorkerId, Traffic]


@dataclass(frozen=True, slots=True)
class LinkRow:
    """One link."""

    prefill: str
    decode: str
    provider: str
    bytes_per_s: float | None
    """None = not known: both of its ends have other links too, and count the bytes of all together; or it is new."""


def moment(workers: list[KnownWorker], now: float) -> Moment:
    """What the workers say now; one that says nothing is left out."""
    return Moment(now, {one.info.worker_id: _traffic(one) for one in workers if one.status is not None})


def link_rows(after: Moment, rates: Mapping[WorkerId, float]) -> list[LinkRow]:
    """Every link that either end tells of, by prefill and decode. rates: of `worker_rates`."""
    providers: dict[tuple[WorkerId, WorkerId], str] = {}
    for one in after.workers.values():
        for peer, provider in one.providers.items():
            pair = (one.life.worker_id, peer) if one.role is Role.PREFILL else (peer, one.life.worker_id)
            providers[pair] = provider
    links_of: dict[WorkerId, int] = {}
    for pair in providers:
        for end in pair:
            links_of[end] = links_of.get(end, 0) + 1
    return [
        LinkRow(prefill, decode, provider, _rate((decode, prefill), links_of, rates))
        for (prefill, decode), provider in sorted(providers.items())
    ]


def worker_rates(before: Moment, after: Moment) -> dict[WorkerId, float]:
    """KV bytes per second of each worker that lived at both moments; its counters begin anew with each life."""
    seconds = after.time - before.time
    if seconds <= 0:
        return {}
    pairs = ((before.workers.get(worker_id), one) for worker_id, one in after.workers.items())
    return {
        now.life.worker_id: (now.kv_bytes - then.kv_bytes) / seconds
        for then, now in pairs
        if then is not None and then.life == now.life and now.kv_bytes >= then.kv_bytes
    }


def _rate(
    ends: tuple[WorkerId, WorkerId], links_of: Mapping[WorkerId, int], rates: Mapping[WorkerId, float]
) -> float | None:
    """An end's rate, if this is its only link. Where both could tell, the first one, decode, has verified its bytes."""
    return next((rates[end] for end in ends if links_of[end] == 1 and end in rates), None)


def _traffic(one: KnownWorker) -> Traffic:
    assert one.status is not None
    named = (link.rpartition("=") for link in one.status.links)
    providers = {WorkerId(peer): provider for peer, _, provider in named if peer}
    return Traffic(one.info.life, one.info.role, one.status.kv_bytes, providers)
