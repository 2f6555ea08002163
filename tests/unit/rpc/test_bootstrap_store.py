"""The store in memory: bounded watchers, and leases that end by its own timer."""

from __future__ import annotations

import asyncio

import pytest

from tandem.bootstrap.store import MemoryStore
from tandem.core.cluster import Joined, LeaveReason, Left
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import WorkerId, WorkerLife
from tandem.core.registry import RegistryLimits
from tandem.rpc.clock import SystemClock
from tandem.rpc.tasks import TaskSupervisor
from tests.support.bootstrap.workers import instance, worker


def store(watch_queue: int = 2) -> MemoryStore:
    limits = RegistryLimits(lease_ttl_ms=20, grace_ms=10)
    return MemoryStore(limits, SystemClock(), max_watchers=2, watch_queue=watch_queue)


async def test_a_watcher_gets_the_snapshot_and_what_comes_after_it():
    registry = store()
    await registry.register(worker("p0"), instance(1))
    watcher = await registry.subscribe()
    assert [info.worker_id for info in watcher.snapshot.workers] == ["p0"]
    await registry.register(worker("p1"), instance(2))
    changes = watcher.changes()
    change = await anext(changes)
    assert (change.revision, change.event.info.worker_id) == (2, "p1")
    registry.close()
    assert [change async for change in changes] == []


async def test_a_watcher_that_overflows_is_dropped_and_frees_its_place():
    registry = store(watch_queue=2)
    slow, quick = await registry.subscribe(), await registry.subscribe()
    quick_changes = quick.changes()
    with pytest.raises(TandemError) as full:
        await registry.subscribe()
    assert full.value.reason is ErrorReason.OVERLOADED
    for number in range(3):
        await registry.register(worker(f"p{number}"), instance(number))
        assert (await anext(quick_changes)).revision == number + 1
    with pytest.raises(TandemError) as dropped:
        await anext(slow.changes())
    assert dropped.value.reason is ErrorReason.OVERLOADED
    await registry.subscribe()


async def test_its_timer_ends_leases():
    registry = store()
    tasks = TaskSupervisor()
    tasks.spawn(registry.run(), "leases")
    changes = (await registry.subscribe()).changes()
    for round_ in range(2):
        life = WorkerLife(WorkerId("p0"), await registry.register(worker("p0"), instance(round_)))
        assert isinstance((await anext(changes)).event, Joined)
        change = await asyncio.wait_for(anext(changes), 20)
        assert change.event == Left(life, LeaveReason.EXPIRED)
    await tasks.close()


async def test_a_lease_that_is_renewed_delays_the_end_of_no_other():
    limits = RegistryLimits(lease_ttl_ms=200, grace_ms=1000)
    registry = MemoryStore(limits, SystemClock(), max_watchers=2, watch_queue=9)
    tasks = TaskSupervisor()
    tasks.spawn(registry.run(), "leases")
    kept = WorkerLife(WorkerId("p0"), await registry.register(worker("p0"), instance(0)))

    async def beat() -> None:
        while True:
            await registry.heartbeat(kept)
            await asyncio.sleep(0.05)

    tasks.spawn(beat(), "heartbeats")
    await asyncio.sleep(0.01)
    silent = WorkerLife(WorkerId("p1"), await registry.register(worker("p1"), instance(1)))
    since = asyncio.get_running_loop().time()
    changes = (await registry.subscribe()).changes()
    change = await asyncio.wait_for(anext(changes), 20)
    assert change.event == Left(silent, LeaveReason.EXPIRED)
    assert 1.2 <= asyncio.get_running_loop().time() - since < 1.7, "its lease and one grace"
    await tasks.close()
