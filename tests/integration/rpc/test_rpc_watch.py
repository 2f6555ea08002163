"""ClusterWatcher against a bootstrap that misbehaves: gaps, silence, other stores."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import WorkerId
from tandem.rpc import convert
from tandem.rpc.client import open_channel
from tandem.rpc.server import GrpcServer
from tandem.rpc.watch import ClusterWatcher, Patience, WatchCallbacks
from tandem.v1 import bootstrap_pb2 as pb
from tandem.v1 import bootstrap_pb2_grpc
from tests.support.bootstrap.workers import worker

WAIT_MS = 20_000
PATIENCE = Patience(outage_ms=300, return_ms=300)


class Script(bootstrap_pb2_grpc.BootstrapServiceServicer):
    """Each Watch plays the next list of messages, and then ends, or stays open after the last list."""

    def __init__(self, *streams: list[pb.WatchResponse]) -> None:
        self.streams = list(streams)
        self.served = 0

    async def Watch(self, request, context):  # noqa: N802
        self.served += 1
        for message in self.streams.pop(0):
            yield message
        if not self.streams:
            await asyncio.Event().wait()


def message(store: int, revision: int, *, ttl_ms: int = 60_000, **event) -> pb.WatchResponse:
    return pb.WatchResponse(store_incarnation=store, revision=revision, lease_ttl_ms=ttl_ms, **event)


def snapshot(*names: str) -> pb.WorkerSnapshot:
    return pb.WorkerSnapshot(workers=[convert.worker_info_to_proto(worker(name, incarnation=1)) for name in names])


def joined(name: str) -> pb.WorkerInfo:
    return convert.worker_info_to_proto(worker(name, incarnation=1))


@asynccontextmanager
async def watching(script: Script, callbacks: WatchCallbacks | None = None):
    server = GrpcServer()
    server.add(bootstrap_pb2_grpc.add_BootstrapServiceServicer_to_server, script, "tandem.v1.BootstrapService")
    address = server.bind("127.0.0.1:0")
    await server.start()
    async with open_channel(address) as channel:
        watcher = ClusterWatcher(channel, rng=random.Random(1), callbacks=callbacks, patience=PATIENCE)
        watcher.start()
        yield watcher, server
        await watcher.close()
    await server.stop(0)


@pytest.mark.parametrize(
    "odd",
    [message(1, 7, joined=joined("b")), message(2, 6, joined=joined("b")), message(1, 6)],
    ids=["gap", "another store", "no event"],
)
async def test_what_does_not_follow_makes_it_start_over(odd):
    script = Script([message(1, 5, snapshot=snapshot("a")), odd], [message(1, 9, snapshot=snapshot("a", "c"))])
    seen: list[str] = []
    callbacks = WatchCallbacks(joined=lambda info: seen.append(info.worker_id))
    async with watching(script, callbacks) as (watcher, _):
        await watcher.wait_for(lambda view: view.revision == 9, WAIT_MS)
        assert seen == ["a", "c"]
        assert script.served == 2


async def test_a_delta_before_the_snapshot_makes_it_start_over():
    script = Script([message(1, 1, joined=joined("b"))], [message(1, 2, snapshot=snapshot("a"))])
    async with watching(script) as (watcher, _):
        assert set((await watcher.wait_for(lambda view: view.revision == 2, WAIT_MS)).workers) == {"a"}


@pytest.mark.parametrize("ttl_ms", [1, 500])
async def test_a_lost_stream_keeps_the_view_for_a_while_and_then_empties_it(ttl_ms: int):
    left: asyncio.Queue = asyncio.Queue()
    script = Script([message(1, 5, ttl_ms=ttl_ms, snapshot=snapshot("a"))], [])
    async with watching(script, WatchCallbacks(left=left.put_nowait)) as (watcher, server):
        await watcher.wait_for(lambda view: "a" in view.workers, WAIT_MS)
        began = time.monotonic()
        await server.stop(0)
        assert left.empty()
        assert (await asyncio.wait_for(left.get(), 20)).worker_id == WorkerId("a")
        assert time.monotonic() - began >= max(ttl_ms, PATIENCE.outage_ms) / 1000
        assert not watcher.view.workers
        assert not watcher.connected


async def test_another_store_gets_a_while_to_confirm_the_workers():
    left: asyncio.Queue = asyncio.Queue()
    script = Script(
        [message(1, 5, snapshot=snapshot("a", "b"))],
        [message(2, 0, ttl_ms=300, snapshot=snapshot()), message(2, 1, ttl_ms=300, joined=joined("b"))],
    )
    async with watching(script, WatchCallbacks(left=left.put_nowait)) as (watcher, _):
        view = await watcher.wait_for(lambda view: view.store_incarnation == 2 and view.revision == 1, WAIT_MS)
        assert set(view.workers) == {"a", "b"}
        assert (await asyncio.wait_for(left.get(), 20)).worker_id == WorkerId("a")
        assert set(watcher.view.workers) == {"b"}
        assert left.empty()


async def test_waiting_ends_at_its_deadline_and_at_close():
    async with watching(Script([message(1, 0, snapshot=snapshot())])) as (watcher, _):
        with pytest.raises(TandemError) as late:
            await watcher.wait_for(lambda view: bool(view.workers), 20)
        assert late.value.reason is ErrorReason.DEADLINE_EXCEEDED
        waiter = asyncio.create_task(watcher.wait_for(lambda view: bool(view.workers), WAIT_MS))
        await asyncio.sleep(0)
        await watcher.close()
        with pytest.raises(TandemError) as closed:
            await waiter
        assert closed.value.reason is ErrorReason.CANCELLED
