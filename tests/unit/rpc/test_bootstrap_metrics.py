"""What bootstrap tells of who is in the cluster, and how they left."""

from __future__ import annotations

import asyncio

import pytest

from tandem.bootstrap.bootstrap_metrics import BootstrapMetrics
from tandem.bootstrap.store import MemoryStore
from tandem.core.cluster import Left
from tandem.core.ids import Role, WorkerId
from tandem.core.registry import RegistryLimits
from tandem.rpc.clock import SystemClock
from tandem.rpc.tasks import TaskSupervisor
from tests.support.bootstrap.workers import instance, worker

pytestmark = pytest.mark.timeout(30)


def lines(counted: BootstrapMetrics) -> set[str]:
    return {line for line in counted.metrics.render().decode().splitlines() if line.startswith("tandem_bootstrap")}


async def test_members_are_counted_by_role_and_state_and_leaves_by_reason() -> None:
    counted = BootstrapMetrics(lambda: store.workers, lambda: store.watchers)
    limits = RegistryLimits(lease_ttl_ms=600_000, grace_ms=10)
    store = MemoryStore(limits, SystemClock(), max_watchers=2, watch_queue=8, on_change=counted.changed)
    assert 'tandem_bootstrap_leaves_total{reason="expired"} 0.0' in lines(counted), "known before it happens"
    await store.register(worker("p0"), instance(1))
    await store.register(worker("d0", Role.DECODE), instance(2))
    await store.register(worker("d1", Role.DECODE), instance(3))
    await store.set_draining(WorkerId("d1"), True)
    watcher = await store.subscribe()
    assert {
        'tandem_bootstrap_workers{role="prefill",state="ready"} 1.0',
        'tandem_bootstrap_workers{role="prefill",state="draining"} 0.0',
        'tandem_bootstrap_workers{role="decode",state="ready"} 1.0',
        'tandem_bootstrap_workers{role="decode",state="draining"} 1.0',
        "tandem_bootstrap_watchers 1.0",
    } <= lines(counted)
    watcher.close()
    (p0,) = [info for info in store.workers if info.role is Role.PREFILL]
    await store.register(worker("p0"), instance(4))
    (newer,) = [info for info in store.workers if info.role is Role.PREFILL]
    assert newer.life != p0.life
    await store.deregister(newer.life)
    assert {
        'tandem_bootstrap_workers{role="prefill",state="ready"} 0.0',
        'tandem_bootstrap_leaves_total{reason="replaced"} 1.0',
        'tandem_bootstrap_leaves_total{reason="deregistered"} 1.0',
        "tandem_bootstrap_watchers 0.0",
    } <= lines(counted)


async def test_a_lease_that_runs_out_is_counted() -> None:
    expired = asyncio.Event()

    def on_change(event) -> None:
        counted.changed(event)
        if isinstance(event, Left):
            expired.set()

    counted = BootstrapMetrics(lambda: store.workers, lambda: store.watchers)
    limits = RegistryLimits(lease_ttl_ms=20, grace_ms=10)
    store = MemoryStore(limits, SystemClock(), max_watchers=2, watch_queue=8, on_change=on_change)
    tasks = TaskSupervisor()
    tasks.spawn(store.run(), "leases")
    await store.register(worker("p0"), instance(1))
    await expired.wait()
    await tasks.close()
    assert 'tandem_bootstrap_leaves_total{reason="expired"} 1.0' in lines(counted)
