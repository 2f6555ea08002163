"""A rank's gauges and counters as the message that the hub collects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tandem.engine.measures import traffic_of
from tandem.engine.port import EngineStatus, PoolStatus
from tandem.engine.rank.counters import RankCounters
from tandem.v1 import session_pb2


@dataclass(frozen=True, slots=True)
class Gauges:
    """What only the engine knows of itself."""

    pools: tuple[PoolStatus, ...] = ()
    running: int = 0
    waiting: int = 0


def with_granted(pools: Sequence[PoolStatus], counters: RankCounters) -> tuple[PoolStatus, ...]:
    """Adds what is under an open grant to the engine's own numbers."""
    granted = {"kv": counters.granted_pages, "metadata": counters.granted_rows, **counters.granted_states}
    return tuple(replace(pool, granted=granted.get(pool.name, 0)) for pool in pools)


def rank_status(gauges: Gauges, counters: RankCounters) -> EngineStatus:
    """The status of one rank."""
    return EngineStatus(
        running=gauges.running,
        waiting=gauges.waiting,
        open_rooms=counters.open_rooms,
        pools=with_granted(gauges.pools, counters),
        rooms_succeeded=counters.rooms_succeeded,
        rooms_failed=counters.rooms_failed,
        kv_bytes=counters.kv_bytes,
        metadata_bytes=counters.metadata_bytes,
        kv_chunks=counters.kv_chunks,
        stale_messages=counters.stale_messages,
        checksum_failures=counters.checksum_failures,
        links=dict(counters.links),
        traffic=counters.traffic,
        moving_us=counters.moving_us,
    )


def merge(ranks: Sequence[EngineStatus]) -> EngineStatus:
    """The status of a worker: counters and rooms added, gauges of the first rank, pools by the scarcest rank."""
    if not ranks:
        return EngineStatus()
    pools = tuple(
        PoolStatus(
            name=pool.name,
            total=min(rank.pools[index].total for rank in ranks),
            free=min(rank.pools[index].free for rank in ranks),
            evictable=min(rank.pools[index].evictable for rank in ranks),
            granted=max(rank.pools[index].granted for rank in ranks),
        )
        for index, pool in enumerate(ranks[0].pools)
        if all(len(rank.pools) > index for rank in ranks)
    )
    links: dict[str, str] = {}
    for rank in ranks:
        links.update(rank.links)
    return EngineStatus(
        running=ranks[0].running,
        waiting=ranks[0].waiting,
        open_rooms=sum(rank.open_rooms for rank in ranks),
        pools=pools,
        rooms_succeeded=ranks[0].rooms_succeeded,
        rooms_failed=max(rank.rooms_failed for rank in ranks),
        kv_bytes=sum(rank.kv_bytes for rank in ranks),
        metadata_bytes=sum(rank.metadata_bytes for rank in ranks),
        kv_chunks=sum(rank.kv_chunks for rank in ranks),
        stale_messages=sum(rank.stale_messages for rank in ranks),
        checksum_failures=sum(rank.checksum_failures for rank in ranks),
        links=links,
        traffic=traffic_of(rank.traffic for rank in ranks),
        moving_us=traffic_of(rank.moving_us for rank in ranks),
    )


def to_proto(status: EngineStatus) -> session_pb2.WorkerStatus:
    """EngineStatus as its message; the worker's name is filled in by the worker."""
    return session_pb2.WorkerStatus(
        running=status.running,
        waiting=status.waiting,
        open_rooms=status.open_rooms,
        pools=[
            session_pb2.PoolStatus(
                name=pool.name, total=pool.total, free=pool.free, evictable=pool.evictable, granted=pool.granted
            )
            for pool in status.pools
        ],
        rooms_succeeded=status.rooms_succeeded,
        rooms_failed=status.rooms_failed,
        kv_bytes=status.kv_bytes,
        metadata_bytes=status.metadata_bytes,
        kv_chunks=status.kv_chunks,
        stale_messages=status.stale_messages,
        checksum_failures=status.checksum_failures,
        links=[f"{peer}={provider}" for peer, provider in sorted(status.links.items())],
        traffic=[
            session_pb2.PeerTraffic(
                peer=peer, provider=provider, bytes=size, moving_us=status.moving_us.get((peer, provider), 0)
            )
            for (peer, provider), size in sorted(status.traffic.items())
        ],
    )


def from_proto(message: session_pb2.WorkerStatus) -> EngineStatus:
    """A message as EngineStatus."""
    return EngineStatus(
        running=message.running,
        waiting=message.waiting,
        open_rooms=message.open_rooms,
        pools=tuple(
            PoolStatus(pool.name, pool.total, pool.free, pool.evictable, pool.granted) for pool in message.pools
        ),
        rooms_succeeded=message.rooms_succeeded,
        rooms_failed=message.rooms_failed,
        kv_bytes=message.kv_bytes,
        metadata_bytes=message.metadata_bytes,
        kv_chunks=message.kv_chunks,
        stale_messages=message.stale_messages,
        checksum_failures=message.checksum_failures,
        links=dict(link.split("=", 1) for link in message.links),
        traffic={(one.peer, one.provider): one.bytes for one in message.traffic},
        moving_us={(one.peer, one.provider): one.moving_us for one in message.traffic},
    )
