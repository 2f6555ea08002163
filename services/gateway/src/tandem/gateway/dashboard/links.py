"""Rows of the table of links: which provider, and how fast pages move, from what workers say of themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
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
    bytes_by_peer: Mapping[WorkerId, int]
    """Moved over the links to each peer since it began to live, whatever the provider; empty if it does not say."""


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
    """What decode has received, or where decode says nothing, what prefill has sent. None = not known: it is new."""


def moment(workers: list[KnownWorker], now: float) -> Moment:
    """What the workers say now; one that says nothing is left out."""
    return Moment(now, {one.info.worker_id: _traffic(one) for one in workers if one.status is not None})


def link_rows(before: Moment, after: Moment) -> list[LinkRow]:
    """Every link that either end tells of, by prefill and decode, with its mean rate between both moments."""
    providers: dict[tuple[WorkerId, WorkerId], str] = {}
    for one in after.workers.values():
        for peer, provider in one.providers.items():
            pair = (one.life.worker_id, peer) if one.role is Role.PREFILL else (peer, one.life.worker_id)
            providers[pair] = provider
    rates = _link_rates(before, after)
    return [
        LinkRow(prefill, decode, provider, rates.get((decode, prefill), rates.get((prefill, decode))))
        for (prefill, decode), provider in sorted(providers.items())
    ]


def worker_rates(before: Moment, after: Moment) -> dict[WorkerId, float]:
    """KV bytes per second of each worker that lived at both moments; its counters begin anew with each life."""
    seconds = after.time - before.time
    return {
        now.life.worker_id: (now.kv_bytes - then.kv_bytes) / seconds
        for then, now in _same_lives(before, after)
        if now.kv_bytes >= then.kv_bytes
    }


def _link_rates(before: Moment, after: Moment) -> dict[tuple[WorkerId, WorkerId], float]:
    """Bytes per second by the worker that counted them and its peer."""
    seconds = after.time - before.time
    return {
        (now.life.worker_id, peer): (size - then.bytes_by_peer.get(peer, 0)) / seconds
        for then, now in _same_lives(before, after)
        for peer, size in now.bytes_by_peer.items()
        if size >= then.bytes_by_peer.get(peer, 0)
    }


def _same_lives(before: Moment, after: Moment) -> Iterator[tuple[Traffic, Traffic]]:
    """What each worker that lived at both moments said then and now; nothing if no time lies between them."""
    if after.time <= before.time:
        return
    for worker_id, now in after.workers.items():
        then = before.workers.get(worker_id)
        if then is not None and then.life == now.life:
            yield then, now


def _traffic(one: KnownWorker) -> Traffic:
    assert one.status is not None
    named = (link.rpartition("=") for link in one.status.links)
    providers = {WorkerId(peer): provider for peer, _, provider in named if peer}
    moved: Counter[WorkerId] = Counter()
    for part in one.status.traffic:
        moved[WorkerId(part.peer)] += part.bytes
    return Traffic(one.info.life, one.info.role, one.status.kv_bytes, providers, moved)
