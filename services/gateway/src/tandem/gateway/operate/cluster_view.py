"""What the gateway knows, as AdminService's messages. Pure: everything is handed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tandem.core.breaker import State as BreakerState
from tandem.core.cluster import ClusterView, WorkerInfo
from tandem.core.ids import Role, WorkerId
from tandem.core.policies import PolicyName
from tandem.gateway.gateway_metrics import GatewayMetrics
from tandem.gateway.routing.attempt import RoomPhase
from tandem.gateway.routing.rooms import Entry, Page
from tandem.rpc import convert
from tandem.v1 import admin_pb2, session_pb2

_PHASES: Final = {
    RoomPhase.SUBMITTED: admin_pb2.ROOM_PHASE_SUBMITTED,
    RoomPhase.FIRST_TOKEN: admin_pb2.ROOM_PHASE_FIRST_TOKEN,
    RoomPhase.DECODING: admin_pb2.ROOM_PHASE_DECODING,
}
_BREAKERS: Final = {
    BreakerState.CLOSED: admin_pb2.BREAKER_STATE_CLOSED,
    BreakerState.OPEN: admin_pb2.BREAKER_STATE_OPEN,
    BreakerState.HALF_OPEN: admin_pb2.BREAKER_STATE_HALF_OPEN,
}
_KV_POOL: Final = "kv"


@dataclass(frozen=True, slots=True)
class Reach:
    """What the gateway has of one worker besides its registration."""

    up: bool
    """Whether there is a Session."""
    in_flight: int
    status: session_pb2.WorkerStatus | None
    """What it last said of itself."""
    breaker: BreakerState = BreakerState.CLOSED


@dataclass(frozen=True, slots=True)
class Totals:
    """Counters of the gateway since its start."""

    requests: int = 0
    errors: int = 0
    retries: int = 0
    first_tokens: int = 0
    first_tokens_ms: float = 0
    """Sum of the times to them."""
    completion_tokens: int = 0
    asked: int = 0
    """Requests to generate whose prompts were read."""
    prompt_tokens: int = 0


def totals_of(metrics: GatewayMetrics) -> Totals:
    """Reads the counters, over all their labels."""
    return Totals(
        requests=int(_sum(metrics.requests, "_total")),
        errors=int(_sum(metrics.errors, "_total")),
        retries=int(_sum(metrics.retries, "_total")),
        first_tokens=int(_sum(metrics.ttft, "_count")),
        first_tokens_ms=1000 * _sum(metrics.ttft, "_sum"),
        completion_tokens=int(metrics.tokens.total("kind", "completion")),
        asked=int(_sum(metrics.prepared, "_count")),
        prompt_tokens=int(metrics.tokens.total("kind", "prompt")),
    )


def _sum(metric: Any, suffix: str) -> float:
    samples = (sample for family in metric.collect() for sample in family.samples)
    return sum(float(sample.value) for sample in samples if sample.name.endswith(suffix))


def cluster_worker(info: WorkerInfo, reach: Reach) -> admin_pb2.ClusterWorker:
    """One worker of ListClusterWorkers."""
    return admin_pb2.ClusterWorker(
        info=convert.worker_info_to_proto(info),
        status=reach.status,
        in_flight=reach.in_flight,
        breaker=_BREAKERS[reach.breaker],
    )


def cluster_numbers(
    at_ms: int,
    view: ClusterView,
    reach: Callable[[WorkerId], Reach],
    phases: Counter[RoomPhase],
    totals: Totals,
    policies: Mapping[Role, PolicyName],
    waiting: int = 0,
) -> admin_pb2.WatchClusterResponse:
    """One message of WatchCluster. waiting: requests that no worker has yet."""
    return admin_pb2.WatchClusterResponse(
        at_ms=at_ms,
        workers=[_worker_numbers(info, reach(worker_id)) for worker_id, info in view.workers.items()],
        rooms=[admin_pb2.PhaseCount(phase=_PHASES[phase], rooms=phases[phase]) for phase in RoomPhase if phases[phase]],
        requests=totals.requests,
        errors=totals.errors,
        retries=totals.retries,
        first_tokens=totals.first_tokens,
        first_tokens_ms=totals.first_tokens_ms,
        completion_tokens=totals.completion_tokens,
        prefill_policy=policies[Role.PREFILL].value,
        decode_policy=policies[Role.DECODE].value,
        unified_policy=policies[Role.UNIFIED].value,
        asked=totals.asked,
        prompt_tokens=totals.prompt_tokens,
        waiting=waiting,
    )


def _worker_numbers(info: WorkerInfo, reach: Reach) -> admin_pb2.WorkerNumbers:
    numbers = admin_pb2.WorkerNumbers(
        worker=convert.life_to_proto(info.life),
        role=convert.role_to_proto(info.role),
        up=reach.up,
        draining=info.draining,
        in_flight=reach.in_flight,
        max_running=info.max_running,
        breaker=_BREAKERS[reach.breaker],
    )
    status = reach.status
    if status is None:
        return numbers
    numbers.known = True
    numbers.running, numbers.waiting = status.running, status.waiting
    numbers.kv_bytes = status.kv_bytes
    numbers.rooms_succeeded, numbers.rooms_failed = status.rooms_succeeded, status.rooms_failed
    for pool in status.pools:
        if pool.name == _KV_POOL:
            numbers.pages_total, numbers.pages_granted = pool.total, pool.granted
            numbers.pages_free = pool.free + pool.evictable
    providers = Counter(link.rpartition("=")[2] for link in status.links)
    numbers.links.extend(admin_pb2.LinkCount(provider=name, links=providers[name]) for name in sorted(providers))
    return numbers


def rooms_page(page: Page, now: float) -> admin_pb2.ListRoomsResponse:
    """A page of rooms. now: monotonic seconds."""
    rooms = [room_message(entry, now) for entry in page.entries]
    return admin_pb2.ListRoomsResponse(rooms=rooms, next_after=page.next_after, total=page.total)


def room_message(entry: Entry, now: float) -> admin_pb2.GatewayRoom:
    """One room. now: monotonic seconds."""
    facts = entry.facts
    return admin_pb2.GatewayRoom(
        room=facts.room,
        request_id=facts.request_id,
        attempt=facts.attempt,
        phase=_PHASES[entry.running.phase],
        **{role.value: convert.life_to_proto(life) for role, life in facts.legs.items()},
        age_ms=max(0, int((now - entry.started) * 1000)),
        left_ms=max(0, int((facts.deadline - now) * 1000)),
    )
