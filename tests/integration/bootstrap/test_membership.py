"""Workers, watchers and a bootstrap process: expiry, restarts, kill -9 and new lives."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tandem.core.cluster import ClusterView
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role, WorkerId, WorkerLife
from tandem.core.version import Protocol
from tandem.rpc import convert
from tandem.rpc.exits import ExitCode
from tandem.rpc.lease import LeaseCallbacks, LeaseKeeper
from tandem.rpc.watch import ClusterWatcher, WatchCallbacks
from tandem.v1 import bootstrap_pb2 as pb
from tests.support.bootstrap.process import bootstrap, connect, lease_holder, start_bootstrap
from tests.support.bootstrap.workers import LAYOUT, instance, worker

WAIT_MS = 20_000


@asynccontextmanager
async def watching(channel, callbacks: WatchCallbacks | None = None) -> AsyncIterator[ClusterWatcher]:
    watcher = ClusterWatcher(channel, rng=random.Random(1), callbacks=callbacks)
    watcher.start()
    try:
        yield watcher
    finally:
        await watcher.close()


@asynccontextmanager
async def keeping(channel, info=None, number=1, **callbacks) -> AsyncIterator[LeaseKeeper]:
    keeper = LeaseKeeper(
        channel,
        info or worker(),
        instance_id=instance(number),
        rng=random.Random(number),
        callbacks=LeaseCallbacks(**callbacks),
    )
    try:
        await keeper.start(WAIT_MS)
        yield keeper
    finally:
        await keeper.close()


def holds(*worker_ids: str):
    return lambda view: set(view.workers) == set(worker_ids)


def lives(*incarnations: str):
    return lambda view: {str(info.life.incarnation) for info in view.workers.values()} == set(incarnations)


async def test_callbacks_follow_join_drain_and_leave():
    seen: asyncio.Queue[tuple[str, object]] = asyncio.Queue()
    callbacks = WatchCallbacks(
        joined=lambda info: seen.put_nowait(("joined", info.life)),
        left=lambda life: seen.put_nowait(("left", life)),
        changed=lambda info: seen.put_nowait(("changed", info.draining)),
    )
    drained: asyncio.Queue[bool] = asyncio.Queue()
    async with (
        bootstrap() as process,
        connect(process.address) as (channel, stub),
        watching(channel, callbacks) as watcher,
        keeping(channel, draining=drained.put_nowait) as keeper,
    ):
        assert await seen.get() == ("joined", keeper.life)
        assert watcher.view.routable(Role.PREFILL, "tiny")
        await stub.Drain(pb.DrainRequest(worker_id="p0"))
        assert await seen.get() == ("changed", True)
        assert await drained.get() is True
        assert not watcher.view.routable(Role.PREFILL, "tiny")
        await stub.Undrain(pb.UndrainRequest(worker_id="p0"))
        assert await seen.get() == ("changed", False)
        assert await drained.get() is False
        await keeper.drain()
        assert await seen.get() == ("changed", True)
        await keeper.close()
        assert await seen.get() == ("left", keeper.life)
        assert watcher.connected


async def test_heartbeats_keep_a_worker_over_many_leases():
    """Expiry of a second worker, which registers again and again but never beats, is the clock of this test."""
    left: asyncio.Queue[WorkerLife] = asyncio.Queue()
    async with (
        bootstrap(lease_ttl_ms=300) as process,
        connect(process.address) as (channel, stub),
        watching(channel, WatchCallbacks(left=left.put_nowait)),
        keeping(channel) as keeper,
    ):
        registered = await _register_only(stub, "silent")
        for _ in range(4):
            assert (await asyncio.wait_for(left.get(), 20)).worker_id == "silent"
            await _register_only(stub, "silent", registered)
        assert keeper.life.worker_id == WorkerId("p0")


async def _register_only(stub, worker_id: str, incarnation: int = 0) -> int:
    info = convert.worker_info_to_proto(worker(worker_id, incarnation=incarnation))
    return (await stub.Register(pb.RegisterRequest(info=info, instance_id=instance(9)))).incarnation


async def test_a_suspended_worker_is_gone_and_comes_back_as_the_same_life():
    async with (
        bootstrap(lease_ttl_ms=600) as process,
        connect(process.address) as (channel, _),
        watching(channel) as watcher,
        keeping(channel) as keeper,
    ):
        await watcher.wait_for(holds("p0"), WAIT_MS)
        life = keeper.life
        for _ in range(2):
            await keeper.suspend()
            await watcher.wait_for(holds(), WAIT_MS)
            keeper.resume()
            view = await watcher.wait_for(holds("p0"), WAIT_MS)
            assert view.find(life) is not None


async def test_kill_9_expires_the_worker_and_a_new_life_of_it_joins():
    async with (
        bootstrap(lease_ttl_ms=1500) as process,
        connect(process.address) as (channel, _),
        watching(channel) as watcher,
    ):
        async with lease_holder(process.address, "p7") as first:
            view = await watcher.wait_for(holds("p7"), WAIT_MS)
            assert str(view.workers[WorkerId("p7")].life.incarnation) == first.address
            await first.end(signal.SIGKILL)
            # Expiry is lease + grace (+ up to one more grace) after the last heartbeat; 2 s of room.
            await watcher.wait_for(holds(), 1500 + 2000)
        async with lease_holder(process.address, "p7") as second:
            await watcher.wait_for(holds("p7"), WAIT_MS)
            assert int(second.address) > int(first.address)
            assert await second.end() == 0
            await watcher.wait_for(holds(), WAIT_MS)


async def test_a_new_life_replaces_the_old_one_which_ends():
    events: list[tuple[str, str]] = []
    callbacks = WatchCallbacks(
        joined=lambda info: events.append(("joined", str(info.life.incarnation))),
        left=lambda life: events.append(("left", str(life.incarnation))),
    )
    async with (
        bootstrap(lease_ttl_ms=3000) as process,
        connect(process.address) as (channel, _),
        watching(channel, callbacks) as watcher,
        lease_holder(process.address, "p7") as first,
    ):
        await watcher.wait_for(holds("p7"), WAIT_MS)
        async with lease_holder(process.address, "p7") as second:
            assert await asyncio.wait_for(first.child.wait(), 20) == ExitCode.REPLACED
            # The replaced process and this watcher hear of it on streams of their own, in any order.
            await watcher.wait_for(lives(second.address), WAIT_MS)
            assert events == [("joined", first.address), ("left", first.address), ("joined", second.address)]


async def test_after_a_restart_of_bootstrap_workers_come_back_as_they_were_and_no_view_loses_them():
    process = await start_bootstrap(lease_ttl_ms=1500)
    registered: asyncio.Queue[WorkerLife] = asyncio.Queue()
    left: list[WorkerLife] = []
    heard: list[str] = []
    told = {"lost": lambda: heard.append("lost"), "missed": lambda: heard.append("missed")}
    async with (
        connect(process.address) as (channel, _),
        watching(channel, WatchCallbacks(left=left.append)) as watcher,
        keeping(channel, registered=registered.put_nowait, **told) as keeper,
    ):
        life = await registered.get()
        before = await watcher.wait_for(holds("p0"), WAIT_MS)
        await process.end(signal.SIGKILL)
        process = await start_bootstrap(port=int(process.address.rpartition(":")[2]), lease_ttl_ms=1500)
        try:
            assert await asyncio.wait_for(registered.get(), 20) == life
            after = await watcher.wait_for(_confirmed_by_another_store(before), WAIT_MS)
            assert after.workers[WorkerId("p0")].life == life == keeper.life
            # The process may take longer to start than the view's lease; then it left and joined again.
            assert left in ([], [life])
            assert (set(heard), heard.count("lost"), heard[-1]) == ({"missed", "lost"}, 1, "lost")
        finally:
            await keeper.close()
            await process.end()


def _confirmed_by_another_store(before: ClusterView):
    return lambda view: view.store_incarnation != before.store_incarnation and view.workers and not view.carried


async def test_a_worker_that_was_paused_registers_again_by_itself():
    async with (
        bootstrap(lease_ttl_ms=400) as process,
        connect(process.address) as (channel, _),
        watching(channel) as watcher,
        lease_holder(process.address, "p7") as holder,
    ):
        await watcher.wait_for(holds("p7"), WAIT_MS)
        holder.child.send_signal(signal.SIGSTOP)
        await watcher.wait_for(holds(), WAIT_MS)
        holder.child.send_signal(signal.SIGCONT)
        view = await watcher.wait_for(holds("p7"), WAIT_MS)
        assert str(view.workers[WorkerId("p7")].life.incarnation) == holder.address


async def test_a_paused_bootstrap_expires_nobody():
    """Heartbeats that came while it was held up are read before any lease ends."""
    left: list[WorkerLife] = []
    async with (
        bootstrap(lease_ttl_ms=600) as process,
        connect(process.address) as (channel, stub),
        watching(channel, WatchCallbacks(left=left.append)),
        keeping(channel),
    ):
        for _ in range(3):
            process.child.send_signal(signal.SIGSTOP)
            await asyncio.sleep(1.2)  # two leases; nothing can be waited for while it is stopped
            process.child.send_signal(signal.SIGCONT)
            for _ in range(3):
                await stub.ListWorkers(pb.ListWorkersRequest(), timeout=10)
            await asyncio.sleep(0.5)  # longer than its grace, so that a wrong expiry would show
        assert left == []


async def test_refusals_are_fatal_with_their_text():
    async with bootstrap() as process, connect(process.address) as (channel, _), keeping(channel):
        cases = [
            (worker("p1", protocol=Protocol(9, 0)), ErrorReason.VERSION_MISMATCH, "9.0"),
            (worker("d0", Role.DECODE, layout=replace(LAYOUT, dtype="int8")), ErrorReason.LAYOUT_MISMATCH, "int8"),
            (worker("p1", max_running=0), ErrorReason.INVALID_ARGUMENT, "max_running"),
        ]
        for number, (info, reason, text) in enumerate(cases):
            with pytest.raises(TandemError) as caught:
                async with keeping(channel, info, number + 10):
                    pass
            assert caught.value.reason is reason
            assert text in caught.value.message


async def test_a_replaced_keeper_reports_it():
    fatal: asyncio.Queue[TandemError] = asyncio.Queue()
    async with (
        bootstrap() as process,
        connect(process.address) as (channel, _),
        keeping(channel, number=1, fatal=fatal.put_nowait),
        keeping(channel, number=2) as newer,
    ):
        assert (await asyncio.wait_for(fatal.get(), 20)).reason is ErrorReason.STALE_INCARNATION
        assert newer.incarnation > 0


async def test_a_keeper_waits_for_a_bootstrap_that_starts_later():
    first = await start_bootstrap()
    port = int(first.address.rpartition(":")[2])
    await first.end()
    async with connect(first.address) as (channel, _):
        keeper = LeaseKeeper(channel, worker(), instance_id=instance(1), rng=random.Random(1))
        starting = asyncio.create_task(keeper.start(WAIT_MS))
        async with bootstrap(port=port):
            assert (await starting).incarnation > 0
            await keeper.close()


async def test_start_gives_up_at_its_deadline():
    first = await start_bootstrap()
    await first.end()
    async with connect(first.address) as (channel, _):
        keeper = LeaseKeeper(channel, worker(), instance_id=instance(1), rng=random.Random(1))
        with pytest.raises(TandemError) as caught:
            await keeper.start(200)
        assert caught.value.reason is ErrorReason.DEADLINE_EXCEEDED
        await keeper.close()
