"""What several processes of one gateway say, as one message. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from tandem.v1 import admin_pb2

_WORST: Final = (
    admin_pb2.BREAKER_STATE_UNSPECIFIED,
    admin_pb2.BREAKER_STATE_CLOSED,
    admin_pb2.BREAKER_STATE_HALF_OPEN,
    admin_pb2.BREAKER_STATE_OPEN,
)
"""A worker that one process does not trust is shown so."""
_COUNTERS: Final = (
    "requests",
    "errors",
    "retries",
    "first_tokens",
    "first_tokens_ms",
    "completion_tokens",
    "asked",
    "prompt_tokens",
)
_CURSOR_BITS: Final = 48


def workers(answers: Iterable[admin_pb2.ListClusterWorkersResponse]) -> admin_pb2.ListClusterWorkersResponse:
    """Every worker that some process knows: rooms are added up, of breakers the worst is shown."""
    found: dict[str, admin_pb2.ClusterWorker] = {}
    for answer in answers:
        for one in answer.workers:
            known = found.setdefault(one.info.worker.worker_id, one)
            if known is one:
                continue
            known.in_flight += one.in_flight
            known.breaker = max(known.breaker, one.breaker, key=_WORST.index)
            if one.HasField("status") and not known.HasField("status"):
                known.status.CopyFrom(one.status)
    return admin_pb2.ListClusterWorkersResponse(workers=[found[name] for name in sorted(found)])


def numbers(
    at_ms: int, latest: Sequence[admin_pb2.WatchClusterResponse], gone: admin_pb2.WatchClusterResponse
) -> admin_pb2.WatchClusterResponse:
    """The numbers of all processes. gone: see `counted`, of those that have ended, so that no counter falls."""
    merged = admin_pb2.WatchClusterResponse(at_ms=at_ms, workers=_worker_numbers(latest))
    counted(merged, gone)
    rooms = Counter[int]()
    for one in latest:
        counted(merged, one)
        merged.waiting += one.waiting
        for phase in one.rooms:
            rooms[phase.phase] += phase.rooms
    for each in sorted(rooms):
        merged.rooms.add(phase=each, rooms=rooms[each])
    if latest:
        merged.prefill_policy = latest[0].prefill_policy
        merged.decode_policy = latest[0].decode_policy
        merged.unified_policy = latest[0].unified_policy
    return merged


def counted(total: admin_pb2.WatchClusterResponse, more: admin_pb2.WatchClusterResponse) -> None:
    """Adds the counters of one message to another."""
    for name in _COUNTERS:
        setattr(total, name, getattr(total, name) + getattr(more, name))


def _worker_numbers(latest: Sequence[admin_pb2.WatchClusterResponse]) -> list[admin_pb2.WorkerNumbers]:
    """What a worker says of itself is the same in all; Sessions, rooms and trust are of each process."""
    seen: dict[str, list[admin_pb2.WorkerNumbers]] = {}
    for message in latest:
        for one in message.workers:
            seen.setdefault(one.worker.worker_id, []).append(one)
    found = []
    for name in sorted(seen):
        worker = admin_pb2.WorkerNumbers()
        worker.CopyFrom(next((one for one in seen[name] if one.known), seen[name][0]))
        worker.up = all(one.up for one in seen[name])
        worker.in_flight = sum(one.in_flight for one in seen[name])
        worker.breaker = max((one.breaker for one in seen[name]), key=_WORST.index)
        found.append(worker)
    return found


def cursor(index: int, after: int) -> int:
    """Where a list of all processes' rooms goes on: behind `after` in that of one process."""
    return index << _CURSOR_BITS | after


def place_of(given: int) -> tuple[int, int]:
    """What `cursor` was made of."""
    return given >> _CURSOR_BITS, given & ((1 << _CURSOR_BITS) - 1)
