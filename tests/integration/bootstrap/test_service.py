"""A real bootstrap process: every RPC, its refusals, health and reflection."""

from __future__ import annotations

import asyncio
import signal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role, WorkerLife
from tandem.core.layout import KvLayout
from tandem.core.version import CURRENT, Protocol
from tandem.rpc import convert
from tandem.rpc.errors import from_rpc_error
from tandem.v1 import bootstrap_pb2 as pb
from tandem.v1 import bootstrap_pb2_grpc
from tests.support.bootstrap.process import bootstrap, connect, start_bootstrap
from tests.support.bootstrap.workers import LAYOUT, instance, worker

NAME = "tandem.v1.BootstrapService"


@pytest.fixture
async def stub():
    async with bootstrap(lease_ttl_ms=60_000) as process, connect(process.address) as (_, stub):
        yield stub


async def register(stub, info=None, number=1) -> WorkerLife:
    info = info or worker()
    answer = await stub.Register(
        pb.RegisterRequest(info=convert.worker_info_to_proto(info), instance_id=instance(number)), timeout=10
    )
    return WorkerLife(info.worker_id, answer.incarnation)


async def refusal(call) -> TandemError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_register_heartbeat_list_drain_and_leave(stub):
    life = await register(stub)
    ref = convert.life_to_proto(life)
    beat = await stub.Heartbeat(pb.HeartbeatRequest(worker=ref))
    assert (beat.lease_ttl_ms, beat.draining) == (60_000, False)
    await stub.Drain(pb.DrainRequest(worker_id="p0"))
    assert (await stub.Heartbeat(pb.HeartbeatRequest(worker=ref))).draining
    listed = await stub.ListWorkers(pb.ListWorkersRequest())
    assert listed.revision == 2
    assert convert.worker_info_from_proto(listed.workers[0]) == worker(incarnation=life.incarnation, draining=True)
    await stub.Undrain(pb.UndrainRequest(worker_id="p0"))
    await stub.Deregister(pb.DeregisterRequest(worker=ref))
    listed = await stub.ListWorkers(pb.ListWorkersRequest())
    assert (listed.revision, len(listed.workers)) == (4, 0)
    assert (await refusal(stub.Heartbeat(pb.HeartbeatRequest(worker=ref)))).reason is ErrorReason.NOT_REGISTERED


async def test_watch_is_a_snapshot_and_then_deltas_without_gaps(stub):
    first = await register(stub)
    call = stub.Watch(pb.WatchRequest(version=convert.protocol_to_proto(CURRENT)))
    snapshot = await call.read()
    assert [info.worker.worker_id for info in snapshot.snapshot.workers] == ["p0"]
    assert snapshot.revision == 1
    assert snapshot.lease_ttl_ms == 60_000
    second = await register(stub, number=2)
    left, joined = await call.read(), await call.read()
    assert (left.revision, joined.revision) == (2, 3)
    assert left.left.worker == convert.life_to_proto(first)
    assert left.left.reason == pb.LEAVE_REASON_REPLACED
    assert joined.joined.worker == convert.life_to_proto(second)
    assert {snapshot.store_incarnation, left.store_incarnation, joined.store_incarnation} == {
        snapshot.store_incarnation
    }
    assert snapshot.store_incarnation > 0
    call.cancel()


async def test_an_older_life_is_refused(stub):
    old, _ = await register(stub, number=1), await register(stub, number=2)
    ref = convert.life_to_proto(old)
    calls = [
        stub.Heartbeat(pb.HeartbeatRequest(worker=ref)),
        stub.Deregister(pb.DeregisterRequest(worker=ref)),
        register(stub, worker(incarnation=old.incarnation), number=1),
    ]
    for call in calls:
        assert (await refusal(call)).reason is ErrorReason.STALE_INCARNATION


async def test_refusals_tell_both_sides_values_and_the_field(stub):
    await register(stub)
    other = KvLayout(**{name: getattr(LAYOUT, name) for name in LAYOUT.__slots__} | {"page_size": 64})
    layout = await refusal(register(stub, worker("d0", Role.DECODE, layout=other), 2))
    assert layout.reason is ErrorReason.LAYOUT_MISMATCH
    assert "page_size: 64 / 16" in layout.message
    version = await refusal(register(stub, worker("p1", protocol=Protocol(9, 1)), 3))
    assert version.reason is ErrorReason.VERSION_MISMATCH
    assert "9.1" in version.message
    assert str(CURRENT) in version.message
    field = await refusal(register(stub, worker("p1", context_tokens=0), 4))
    assert (field.reason, field.field) == (ErrorReason.INVALID_ARGUMENT, "context_tokens")
    long = await refusal(register(stub, worker("p1", models=tuple(f"{n}" + "m" * 200 for n in range(60))), 5))
    assert (long.reason, long.field) == (ErrorReason.INVALID_ARGUMENT, "info")
    empty = await refusal(stub.Register(pb.RegisterRequest()))
    assert (empty.reason, empty.field) == (ErrorReason.INVALID_ARGUMENT, "role")
    watch = stub.Watch(pb.WatchRequest())
    assert (await refusal(watch.read())).reason is ErrorReason.VERSION_MISMATCH
    unknown = await refusal(stub.Drain(pb.DrainRequest(worker_id="x")))
    assert (unknown.reason, unknown.field) == (ErrorReason.UNKNOWN_WORKER, "worker_id")


async def test_a_snapshot_of_as_many_workers_as_are_allowed_fits_a_message():
    async with bootstrap(lease_ttl_ms=60_000, max_workers=256) as process, connect(process.address) as (_, stub):
        models = tuple(f"{n:02d}" + "m" * 220 for n in range(16))
        infos = [worker(f"p{number:03d}", models=models) for number in range(256)]
        assert 3500 < convert.worker_info_to_proto(infos[0]).ByteSize() < 4096
        await asyncio.gather(*(register(stub, info, number) for number, info in enumerate(infos)))
        call = stub.Watch(pb.WatchRequest(version=convert.protocol_to_proto(CURRENT)))
        assert len((await call.read()).snapshot.workers) == 256
        call.cancel()


async def test_a_slow_watcher_is_dropped_and_others_are_not():
    async with (
        bootstrap(lease_ttl_ms=60_000, watch_queue=16) as process,
        connect(process.address) as (_, stub),
        grpc.aio.insecure_channel(process.address, options=[("grpc.http2.bdp_probe", 0)]) as lazy_channel,
    ):
        lazy = bootstrap_pb2_grpc.BootstrapServiceStub(lazy_channel)
        # Long messages fill the stream's window, which does not grow without the probe, while nobody reads.
        info = worker(models=tuple(f"{n:02d}" + "m" * 220 for n in range(16)))
        request = pb.WatchRequest(version=convert.protocol_to_proto(CURRENT))
        slow, quick = lazy.Watch(request), stub.Watch(request)
        await slow.read()
        await quick.read()
        await register(stub, info)
        assert (await quick.read()).revision == 1
        revision = 1
        for _ in range(100):
            await stub.Drain(pb.DrainRequest(worker_id="p0"))
            await stub.Undrain(pb.UndrainRequest(worker_id="p0"))
            for _ in range(2):
                revision += 1
                assert (await quick.read()).revision == revision
        received: list[pb.WatchResponse] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(_read_all(slow, received), 20)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "start over" in from_rpc_error(caught.value).message
        assert len(received) < revision
        quick.cancel()


async def _read_all(call, received: list[pb.WatchResponse]) -> None:
    while (message := await call.read()) is not grpc.aio.EOF:
        received.append(message)


async def test_there_is_a_bound_of_watchers():
    async with bootstrap(max_watchers=1) as process, connect(process.address) as (_, stub):
        request = pb.WatchRequest(version=convert.protocol_to_proto(CURRENT))
        first = stub.Watch(request)
        await first.read()
        assert (await refusal(stub.Watch(request).read())).reason is ErrorReason.OVERLOADED
        first.cancel()


async def test_health_and_reflection():
    async with bootstrap() as process, connect(process.address) as (channel, _):
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", NAME):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter(
                [
                    reflection_pb2.ServerReflectionRequest(list_services=""),
                    reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME),
                ]
            )
        )
        listed, described = [answer async for answer in call]
        names = {service.name for service in listed.list_services_response.service}
        assert {NAME, "grpc.health.v1.Health"} <= names
        assert described.file_descriptor_response.file_descriptor_proto


async def test_sigterm_ends_it_well_while_someone_watches():
    process = await start_bootstrap()
    async with connect(process.address) as (_, stub):
        call = stub.Watch(pb.WatchRequest(version=convert.protocol_to_proto(CURRENT)))
        await call.read()
        assert await process.end(signal.SIGTERM) == 0
        assert await call.read() is grpc.aio.EOF


async def test_a_port_in_use_is_a_settings_error():
    async with bootstrap() as process:
        with pytest.raises(AssertionError, match="exit code 2"):
            await start_bootstrap(port=int(process.address.rpartition(":")[2]))


async def test_beyond_loopback_is_refused_without_certificates():
    with pytest.raises(AssertionError, match="exit code 2"):
        await start_bootstrap(host="0.0.0.0")
