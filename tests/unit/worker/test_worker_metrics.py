"""A worker's metrics: all ranks added up, and everything that is promised is there."""

from __future__ import annotations

from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tandem.core.ids import RankId, Role
from tandem.engine.measures import ProcessUse, RankMeasures, RankReport
from tandem.engine.port import EngineStatus, Measured, PoolStatus
from tandem.engine.worker.worker_metrics import WorkerFacts, WorkerMetrics

STATUS = EngineStatus(
    running=3,
    waiting=2,
    pools=(PoolStatus("kv", total=100, free=60, evictable=10, granted=7),),
    stale_messages=4,
    checksum_failures=1,
)


def rank(tp: int, *, oldest_room_s: float) -> RankReport:
    """A busy rank of a decode worker."""
    measures = RankMeasures(rooms_succeeded=5, rooms_failed=Counter({"CANCELLED": 2}), aborts_sent=1)
    measures.peer("prefill-0", "tcp").landed(1000)
    measures.peer(f"prefill-{tp}", "cma").landed(10)
    measures.queue_s.observe(0.002)
    measures.lag_s.observe(0.3)
    measures.revoked["tcp"] += 1
    rooms = Counter({"ready": 2})
    return RankReport(RankId(tp=tp), rooms, 1, oldest_room_s, 3, ProcessUse(1.5, 2048, 9), measures)


def told(role: Role, measured: Measured | None, facts: WorkerFacts | None = None) -> dict[str, float]:
    """Series by name and label values."""
    text = WorkerMetrics(role).told(facts or WorkerFacts(), measured).decode()
    return {
        " ".join([sample.name, *(value for _, value in sorted(sample.labels.items()))]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_ranks_add_up_and_keep_what_is_their_own() -> None:
    found = told(Role.DECODE, Measured(STATUS, (rank(0, oldest_room_s=4), rank(1, oldest_room_s=9))))
    wanted = {
        "tandem_engine_up": 1,
        "tandem_engine_sequences running": 3,
        "tandem_pool_entries kv used": 30,
        "tandem_pool_entries kv free": 60,
        "tandem_pool_granted_entries kv": 7,
        "tandem_rooms ready": 4,
        "tandem_rooms fencing": 0,
        "tandem_rooms_overdue": 2,
        "tandem_room_oldest_seconds": 9,
        "tandem_rooms_succeeded_total": 10,
        "tandem_rooms_failed_total CANCELLED": 4,
        "tandem_room_queue_seconds_count": 2,
        "tandem_room_queue_seconds_bucket 0.001": 0,
        "tandem_room_queue_seconds_bucket 0.0025": 2,
        "tandem_kv_bytes_total prefill-0 tcp": 2000,
        "tandem_kv_bytes_total prefill-0 cma": 10,
        "tandem_kv_bytes_total prefill-1 cma": 10,
        "tandem_kv_aborts_total sent": 2,
        "tandem_kv_grants_revoked_total tcp": 2,
        "tandem_kv_checksum_failures_total": 1,
        "tandem_kv_stale_messages_total": 4,
        "tandem_rdma_queue_pairs_replaced_total": 6,
        "tandem_rank_event_loop_lag_seconds_count dp0.pp0.tp1": 1,
        "tandem_rank_cpu_seconds_total dp0.pp0.tp0": 1.5,
        "tandem_rank_open_fds dp0.pp0.tp1": 9,
    }
    assert {name: found.get(name) for name in wanted} == wanted
    assert not [name for name in found if name.startswith("tandem_kv_chunk_seconds")], "only prefill can time a chunk"


@pytest.mark.parametrize("role", Role)
def test_an_engine_that_does_not_answer_is_down_and_the_worker_tells_of_itself(role: Role) -> None:
    found = told(role, None, WorkerFacts(sessions=2, submits=7, open_rooms=1, draining=True))
    assert found["tandem_engine_up"] == 0
    assert found["tandem_worker_sessions"] == 2
    assert found["tandem_worker_submits_total"] == 7
    assert found["tandem_worker_draining"] == 1
    assert found["tandem_worker_serving"] == 0
    assert found["tandem_worker_lease_losses_total"] == 0
    assert not [name for name in found if name.startswith(("tandem_rooms", "tandem_kv", "tandem_pool"))]


def test_an_engine_without_ranks_yet_tells_what_it_can() -> None:
    found = told(Role.PREFILL, Measured(EngineStatus(), ()))
    assert found["tandem_engine_up"] == 1
    assert found["tandem_rooms pushing"] == 0
    assert "tandem_room_queue_seconds_count" not in found
