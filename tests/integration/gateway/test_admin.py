"""AdminService, and what else surrounds a request: readiness, ids, traces, metrics."""

from __future__ import annotations

import asyncio
import socket

import grpc
import httpx
import pytest

from tandem.core.errors import ErrorReason
from tandem.gateway.operate.pace import MAX_WATCHERS
from tandem.rpc.errors import from_rpc_error
from tandem.v1 import admin_pb2, admin_pb2_grpc, common_pb2, session_pb2
from tests.support.gateway.cluster import cluster
from tests.support.gateway.fake_worker import (
    FIRST_TOKEN,
    MODEL,
    count_up,
    fail_with,
    first_then_wait,
    hand_over,
    say_nothing,
)

PROMPT = {"model": MODEL, "prompt": "hello", "max_tokens": 2}


async def test_workers_are_listed_with_status_and_rooms() -> None:
    async with cluster(decode=[first_then_wait()]) as now:
        stub = admin_pb2_grpc.AdminServiceStub(now.admin)
        async with now.http.stream("POST", "/v1/completions", json={**PROMPT, "stream": True}) as response:
            pieces = response.aiter_bytes()  # kept: the connection closes with it
            await anext(pieces)
            async with asyncio.timeout(20):
                listed = (await stub.ListClusterWorkers(admin_pb2.ListClusterWorkersRequest())).workers
                while listed[-1].in_flight or not all(worker.HasField("status") for worker in listed):
                    # Each worker's news comes by a stream of its own.
                    listed = (await stub.ListClusterWorkers(admin_pb2.ListClusterWorkersRequest())).workers
    assert [worker.info.worker.worker_id for worker in listed] == ["d0", "p0"]
    assert [worker.in_flight for worker in listed] == [1, 0]
    assert listed[0].status.worker == listed[0].info.worker


async def test_a_worker_that_fails_shows_its_breaker_and_its_peer_does_not() -> None:
    scripts = [fail_with(ErrorReason.ENGINE_FAILED), fail_with(ErrorReason.LINK_LOST)]
    settings = {"breaker_failures": 2, "breaker_open_ms": 600_000, "max_attempts": 1, "decode_policy": "round_robin"}
    async with cluster([say_nothing], scripts, **settings) as now:
        stub = admin_pb2_grpc.AdminServiceStub(now.admin)
        for _ in range(6):
            assert (await now.http.post("/v1/completions", json=PROMPT)).status_code >= 500
        listed = (await stub.ListClusterWorkers(admin_pb2.ListClusterWorkersRequest())).workers
        metrics = (await now.http.get("/metrics")).text
    assert [(worker.info.worker.worker_id, worker.breaker) for worker in listed] == [
        ("d0", admin_pb2.BREAKER_STATE_OPEN),
        ("d1", admin_pb2.BREAKER_STATE_CLOSED),
        ("p0", admin_pb2.BREAKER_STATE_CLOSED),
    ]
    assert 'tandem_gateway_breakers{role="decode",state="open"} 1.0' in metrics
    assert 'tandem_gateway_breakers{role="decode",state="closed"} 1.0' in metrics
    assert 'tandem_gateway_breaker_openings_total{role="decode"} 1.0' in metrics
    assert 'tandem_gateway_breaker_openings_total{role="prefill"} 0.0' in metrics


async def test_a_policy_can_be_swapped_and_an_unknown_one_is_refused() -> None:
    async with cluster(prefill=[hand_over] * 2, decode=[count_up] * 2) as now:
        stub = admin_pb2_grpc.AdminServiceStub(now.admin)
        assert (await stub.SetPolicy(admin_pb2.SetPolicyRequest(policy="round_robin"))).previous == "least_load"
        for _ in range(4):
            await now.client.completions.create(**PROMPT)
        assert [len(worker.submits) for worker in now.prefills + now.decodes] == [2, 2, 2, 2]
        with pytest.raises(grpc.aio.AioRpcError, match="least_load"):
            await stub.SetPolicy(admin_pb2.SetPolicyRequest(policy="best"))


async def test_a_drained_worker_gets_no_new_rooms() -> None:
    async with cluster(decode=[count_up] * 2) as now:
        stub = admin_pb2_grpc.AdminServiceStub(now.admin)
        await stub.DrainWorker(admin_pb2.DrainWorkerRequest(worker_id="d0"))
        await stub.DrainWorker(admin_pb2.DrainWorkerRequest(worker_id="d1"))
        await now.wait_ready(ready=False)
        refused = await now.http.post("/v1/completions", json=PROMPT)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        await stub.UndrainWorker(admin_pb2.UndrainWorkerRequest(worker_id="d1"))
        await now.wait_ready()
        await now.client.completions.create(**PROMPT)
        assert [len(worker.submits) for worker in now.decodes] == [0, 1]
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.DrainWorker(admin_pb2.DrainWorkerRequest(worker_id="nobody"))
        assert from_rpc_error(unknown.value).reason.value == "UNKNOWN_WORKER"


async def test_ready_only_with_both_roles() -> None:
    async with cluster(decode=[]) as now:
        response = await now.http.get("/ready")
        assert response.status_code == 503
        assert "a prefill and a decode worker" in response.json()["error"]["message"]
        assert (await now.http.get("/health")).json() == {"status": "ok"}
    async with cluster() as now:
        assert (await now.http.get("/ready")).json() == {"status": "ready"}


async def test_request_id_and_trace_are_taken_and_passed_on() -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"X-Request-Id": "mine-1", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    async with cluster() as now:
        response = await now.http.post("/v1/completions", json=PROMPT, headers=headers)
        odd = await now.http.get("/health", headers={"X-Request-Id": "not one word"})
        [submit] = now.decodes[0].submits
    assert response.headers["x-request-id"] == submit.request_id == "mine-1"
    assert submit.traceparent.split("-")[1] == trace
    assert submit.traceparent.split("-")[2] != "00f067aa0ba902b7", "the gateway's span is its own"
    assert odd.headers["x-request-id"] not in ("", "not one word")


async def test_metrics_and_model_info() -> None:
    async with cluster() as now:
        await now.client.completions.create(**PROMPT)
        await now.http.post("/v1/completions", json={**PROMPT, "temperature": 3})
        await now.http.get("/nowhere")
        metrics = (await now.http.get("/metrics")).text
        info = (await now.http.get("/get_model_info")).json()
    for line in (
        'tandem_gateway_requests_total{code="200",endpoint="/v1/completions"} 1.0',
        'tandem_gateway_requests_total{code="400",endpoint="/v1/completions"} 1.0',
        'tandem_gateway_requests_total{code="404",endpoint="other"} 1.0',
        'tandem_gateway_errors_total{endpoint="/v1/completions",reason="INVALID_ARGUMENT"} 1.0',
        'gen_ai_server_time_to_first_token_seconds_count{endpoint="/v1/completions",model="tandem-tiny"} 1.0',
        'gen_ai_server_time_per_output_token_seconds_count{endpoint="/v1/completions",model="tandem-tiny"} 1.0',
        'tandem_gateway_inter_token_seconds_count{endpoint="/v1/completions",model="tandem-tiny"} 1.0',
        'tandem_gateway_workers{role="decode",state="ready"} 1.0',
        'tandem_gateway_workers{role="decode",state="lost"} 0.0',
        "tandem_gateway_bootstrap_connected 1.0",
        "tandem_gateway_queue_seconds_count 1.0",
        "tandem_gateway_prepare_seconds_count 1.0",
        "tandem_gateway_sequences_in_flight 0.0",
        'tandem_gateway_tokens_total{kind="completion",model="tandem-tiny"} 2.0',
    ):
        assert line in metrics
    assert info["is_generation"] is True
    assert info["model_path"].endswith("tandem-tiny")


async def test_a_client_that_does_not_read_is_given_up() -> None:
    async def flood(submit, send) -> None:  # type: ignore[no-untyped-def]
        for place in range(4000):
            send(session_pb2.Delta(room=submit.room, token_ids=[FIRST_TOKEN + place % 100], text="x" * 4000))
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    async with cluster(decode=[flood], stream_buffer_tokens=64) as now:
        host, port = now.gateway.http_address.split(":")
        # 16 MB of text are more than two sockets hold, of which this one is kept small.
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
        body = httpx.Request("POST", "http://x/", json={**PROMPT, "max_tokens": 400, "stream": True}).content
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(client, head.encode() + body)
        await now.decodes[0].wait_until(lambda worker: len(worker.cancels) == 1)
        assert now.decodes[0].cancels[0].failure.reason == "OVERLOADED"
        client.close()


async def next_room(stub: admin_pb2_grpc.AdminServiceStub, phase: int) -> admin_pb2.GatewayRoom:
    """The only room, once it is in a phase; asked for with every message of the cluster's numbers."""
    call = stub.WatchCluster(admin_pb2.WatchClusterRequest(interval_ms=200))
    async with asyncio.timeout(20):
        async for _ in call:
            rooms = (await stub.ListRooms(admin_pb2.ListRoomsRequest())).rooms
            if rooms and rooms[0].phase == phase:
                break
    call.cancel()
    [room] = rooms
    return room


async def test_rooms_are_listed_with_their_phase_and_can_be_ended() -> None:
    headers = {"X-Request-Id": "slow-1"}
    async with cluster(decode=[first_then_wait()]) as now:
        stub = admin_pb2_grpc.AdminServiceStub(now.admin)
        asking = asyncio.create_task(now.http.post("/v1/completions", json=PROMPT, headers=headers))
        room = await next_room(stub, admin_pb2.ROOM_PHASE_DECODING)
        assert (room.request_id, room.attempt) == ("slow-1", 1)
        assert (room.prefill.worker_id, room.decode.worker_id) == ("p0", "d0")
        assert room.room == now.decodes[0].submits[0].room
        assert 0 < room.left_ms <= 600_000
        ended = await stub.AbortRoom(admin_pb2.AbortRoomRequest(room=room.room))
        assert ended.room.request_id == "slow-1"
        response = await asking
        await now.decodes[0].wait_until(lambda worker: bool(worker.cancels))
        assert not (await stub.ListRooms(admin_pb2.ListRoomsRequest())).total
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await stub.AbortRoom(admin_pb2.AbortRoomRequest(room=room.room))
    assert response.status_code == 499
    assert response.json()["error"]["code"] == "cancelled"
    assert now.decodes[0].cancels[0].failure.reason == "CANCELLED"
    assert len(now.decodes[0].submits) == 1, "what an operator ends is not tried again"
    assert from_rpc_error(gone.value).reason is ErrorReason.UNKNOWN_ROOM


async def test_both_legs_of_a_room_that_nobody_answers_are_ended() -> None:
    async with cluster(prefill=[say_nothing], decode=[say_nothing]) as now:
        stub = admin_pb2_grpc.AdminServiceStub(now.admin)
        asking = asyncio.create_task(now.http.post("/v1/completions", json=PROMPT))
        room = await next_room(stub, admin_pb2.ROOM_PHASE_SUBMITTED)
        await stub.AbortRoom(admin_pb2.AbortRoomRequest(room=room.room))
        for worker in (now.prefills[0], now.decodes[0]):
            await worker.wait_until(lambda one: bool(one.cancels))
            assert worker.cancels[0].failure.reason == "CANCELLED"
        assert (await asking).status_code == 499


async def test_one_roles_policy_can_be_set() -> None:
    async with cluster() as now:
        stub = admin_pb2_grpc.AdminServiceStub(now.admin)
        set_prefill = admin_pb2.SetPolicyRequest(policy="random", role=common_pb2.ROLE_PREFILL)
        assert (await stub.SetPolicy(set_prefill)).previous == "least_load"
        answer = await stub.SetPolicy(admin_pb2.SetPolicyRequest(policy="round_robin"))
    assert (answer.prefill_before, answer.decode_before, answer.previous) == ("random", "least_load", "least_load")


async def test_the_cluster_in_numbers() -> None:
    async with cluster(decode=[first_then_wait()]) as now:
        stub = admin_pb2_grpc.AdminServiceStub(now.admin)
        await now.http.post("/v1/completions", json={**PROMPT, "temperature": 3})
        async with now.http.stream("POST", "/v1/completions", json={**PROMPT, "stream": True}) as response:
            pieces = response.aiter_bytes()  # kept: the connection closes with it
            await anext(pieces)
            call = stub.WatchCluster(admin_pb2.WatchClusterRequest(interval_ms=200))
            messages = aiter(call)
            first = await anext(messages)
            async with asyncio.timeout(20):
                second = await anext(messages)
                while not all(worker.known for worker in second.workers):  # statuses come by streams of their own
                    second = await anext(messages)
            call.cancel()
    assert second.at_ms - first.at_ms >= 200
    assert [(one.worker.worker_id, one.up, one.in_flight) for one in second.workers] == [
        ("d0", True, 1),
        ("p0", True, 0),
    ]
    assert [(count.phase, count.rooms) for count in second.rooms] == [(admin_pb2.ROOM_PHASE_DECODING, 1)]
    assert (second.requests, second.errors, second.first_tokens, second.completion_tokens) == (1, 1, 1, 1)
    assert (second.asked, second.waiting) == (1, 0), "what is refused for what it says is not asked"
    assert (second.prefill_policy, second.decode_policy) == ("least_load", "least_load")


async def test_who_waits_for_a_turn_is_among_the_numbers() -> None:
    async with cluster(decode=[first_then_wait()], max_concurrent=1) as now:
        stub = admin_pb2_grpc.AdminServiceStub(now.admin)
        asking = [asyncio.create_task(now.http.post("/v1/completions", json=PROMPT)) for _ in range(3)]
        call = stub.WatchCluster(admin_pb2.WatchClusterRequest(interval_ms=200))
        async with asyncio.timeout(20):
            while (seen := await call.read()).waiting < 2:
                pass
        call.cancel()
        for one in asking:
            one.cancel()
        await asyncio.wait(asking)
    assert (seen.waiting, seen.asked, seen.first_tokens) == (2, 3, 1)
    assert seen.prompt_tokens > 0
    assert seen.prompt_tokens % 3 == 0


async def test_watchers_and_their_pace_are_bounded() -> None:
    async with cluster() as now:
        stub = admin_pb2_grpc.AdminServiceStub(now.admin)
        with pytest.raises(grpc.aio.AioRpcError, match=r"200\.\.60000"):
            await anext(aiter(stub.WatchCluster(admin_pb2.WatchClusterRequest(interval_ms=1))))
        calls = [stub.WatchCluster(admin_pb2.WatchClusterRequest()) for _ in range(MAX_WATCHERS)]
        for call in calls:
            await anext(aiter(call))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(stub.WatchCluster(admin_pb2.WatchClusterRequest())))
        assert from_rpc_error(refused.value).reason is ErrorReason.OVERLOADED
        for call in calls:
            call.cancel()
        async with asyncio.timeout(20):
            while await refused_watch(stub):  # until the gateway has seen that they have gone
                pass


async def refused_watch(stub: admin_pb2_grpc.AdminServiceStub) -> bool:
    """Whether there are too many watchers for one more, which leaves at once."""
    call = stub.WatchCluster(admin_pb2.WatchClusterRequest())
    try:
        await anext(aiter(call))
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason is ErrorReason.OVERLOADED
    call.cancel()
    return False
