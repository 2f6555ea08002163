"""What a client sees, and what workers are told, when something goes wrong."""

from __future__ import annotations

import asyncio

import httpx
import openai
import orjson
import pytest

from tandem.core.errors import ErrorReason
from tests.support.gateway.cluster import cluster
from tests.support.gateway.fake_worker import (
    MODEL,
    Handover,
    count_up,
    fail_with,
    first_then_wait,
    say_nothing,
)

PROMPT = {"model": MODEL, "prompt": "hello", "max_tokens": 4}


async def first_event(response: httpx.Response) -> tuple[bytes, asyncio.Task[bytes]]:
    """The first piece of a stream, and a task that reads the rest."""
    pieces = response.aiter_bytes()
    first = await anext(pieces)

    async def rest() -> bytes:
        return b"".join([piece async for piece in pieces])

    return first, asyncio.create_task(rest())


def streams_fed() -> int:
    """Tasks of gRPC that take messages for a stream."""
    return sum("_consume_request_iterator" in repr(task.get_coro()) for task in asyncio.all_tasks())


@pytest.mark.parametrize("side", ["prefills", "decodes"])
async def test_a_failure_before_the_first_token_is_invisible(side: str) -> None:
    pair = Handover()
    scripts = {"prefill": [pair.prefill] * 2, "decode": [pair.decode] * 2}
    async with cluster(**scripts, decode_policy="round_robin") as now:
        getattr(now, side)[0].script = fail_with(ErrorReason.POOL_EXHAUSTED)
        answers = [await now.client.completions.create(**PROMPT) for _ in range(4)]
        assert {answer.choices[0].text for answer in answers} == {"t0 t1 t2 t3 "}
        assert getattr(now, side)[0].submits, "the bad one was tried"
        assert getattr(now, side)[1].submits
        metrics = (await now.http.get("/metrics")).text
    assert 'tandem_gateway_retries_total{reason="POOL_EXHAUSTED"}' in metrics


async def test_a_failure_of_every_attempt_has_the_catalogues_status() -> None:
    async with cluster(decode=[fail_with(ErrorReason.CHECKSUM_MISMATCH)]) as now:
        response = await now.http.post("/v1/completions", json={**PROMPT, "stream": True})
        assert response.status_code == 502
        assert response.json()["error"]["code"] == "checksum_mismatch"
        assert len(now.decodes[0].submits) == 3
        assert len({submit.room for submit in now.decodes[0].submits}) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_a_room_that_an_operator_gives_up_is_told_to_its_client_and_not_tried_again(stream: bool) -> None:
    async with cluster(decode=[fail_with(ErrorReason.CANCELLED)]) as now:
        response = await now.http.post("/v1/completions", json={**PROMPT, "stream": stream})
        assert response.status_code == 499
        assert response.json()["error"]["code"] == "cancelled"
        assert len(now.decodes[0].submits) == 1


async def test_pool_exhaustion_is_told_with_retry_after() -> None:
    async with cluster(decode=[fail_with(ErrorReason.POOL_EXHAUSTED)]) as now:
        response = await now.http.post("/generate", json={"text": "a"})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"


async def test_a_disconnect_cancels_both_legs() -> None:
    async with cluster(prefill=[say_nothing], decode=[first_then_wait()]) as now:
        async with now.http.stream("POST", "/v1/completions", json={**PROMPT, "stream": True}) as response:
            pieces = response.aiter_bytes()  # kept: the connection closes with it
            await anext(pieces)
        for one in (now.prefills[0], now.decodes[0]):
            await one.wait_until(lambda worker: len(worker.cancels) == 1)
            assert one.cancels[0].room == one.submits[0].room
            assert one.cancels[0].failure.reason == "CANCELLED"


async def test_a_disconnect_without_a_stream_cancels_both_legs() -> None:
    async with cluster(prefill=[say_nothing], decode=[say_nothing]) as now:
        task = asyncio.create_task(now.http.post("/v1/completions", json=PROMPT))
        await now.decodes[0].wait_until(lambda worker: len(worker.submits) == 1)
        task.cancel()
        for one in (now.prefills[0], now.decodes[0]):
            await one.wait_until(lambda worker: len(worker.cancels) == 1)


async def test_a_worker_that_dies_mid_stream_brings_an_error_event_and_the_next_is_served() -> None:
    async with cluster(decode=[first_then_wait(), count_up], decode_policy="round_robin") as now:
        async with now.http.stream("POST", "/v1/completions", json={**PROMPT, "stream": True}) as response:
            assert response.status_code == 200
            first, rest = await first_event(response)
            assert b'"t0 "' in first
            await now.decodes[0].die()
            last = (await asyncio.wait_for(rest, 10)).split(b"\n\n")
        error = orjson.loads(last[-2].removeprefix(b"data: "))["error"]
        assert error["code"] == "peer_lost"
        assert b"[DONE]" not in b"".join(last)
        answer = await now.client.completions.create(**PROMPT)
        assert answer.choices[0].text == "t0 t1 t2 t3 "


async def test_the_openai_client_raises_for_an_error_event() -> None:
    async with cluster(decode=[first_then_wait()]) as now:
        stream = await now.client.completions.create(**PROMPT, stream=True)
        assert (await anext(stream)).choices[0].text == "t0 "
        await now.decodes[0].die()
        with pytest.raises(openai.APIError, match="d0"):
            await asyncio.wait_for(anext(stream), 10)


async def test_a_lost_session_fails_its_rooms_and_is_opened_again() -> None:
    async with cluster(decode=[first_then_wait()]) as now:
        async with now.http.stream("POST", "/v1/completions", json={**PROMPT, "stream": True}) as response:
            _, rest = await first_event(response)
            before = streams_fed()
            now.decodes[0].hang_up()
            assert b"peer_lost" in await asyncio.wait_for(rest, 10)
        await now.decodes[0].wait_until(lambda worker: worker.welcomes == 2)
        await now.wait_ready()
        assert streams_fed() == before, "nobody feeds the lost stream any more"
        now.decodes[0].script = count_up
        answer = await now.client.completions.create(**PROMPT)
        assert answer.choices[0].text == "t0 t1 t2 t3 "


async def test_a_worker_that_bootstrap_strikes_off_fails_its_rooms_at_once() -> None:
    async with cluster(decode=[first_then_wait()]) as now:
        async with now.http.stream("POST", "/v1/completions", json={**PROMPT, "stream": True}) as response:
            _, rest = await first_event(response)
            await now.decodes[0].leave(now.bootstrap)
            assert b"peer_lost" in await asyncio.wait_for(rest, 10)
        await now.wait_ready(ready=False)
        assert (await now.http.get("/ready")).status_code == 503


async def test_the_deadline_ends_the_request_and_both_legs() -> None:
    async with cluster(prefill=[say_nothing], decode=[say_nothing], request_timeout_ms=200) as now:
        response = await now.http.post("/v1/completions", json=PROMPT)
        assert response.status_code == 504
        assert 1 <= now.decodes[0].submits[0].timeout_ms <= 200
        for one in (now.prefills[0], now.decodes[0]):
            await one.wait_until(lambda worker: len(worker.cancels) == 1)


async def test_overload_is_429_with_retry_after() -> None:
    async with cluster(decode=[first_then_wait()], max_concurrent=1, max_queued=0) as now:
        async with now.http.stream("POST", "/v1/completions", json={**PROMPT, "stream": True}) as response:
            pieces = response.aiter_bytes()  # kept: the connection closes with it
            await anext(pieces)
            refused = await now.http.post("/v1/completions", json=PROMPT)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"


async def test_a_giant_body_is_refused_before_it_is_read() -> None:
    async with cluster(max_body_bytes=1024) as now:
        response = await now.http.post("/v1/completions", json={**PROMPT, "prompt": "x" * 2_000_000})
        assert response.status_code == 413
        assert "1024" in response.json()["error"]["message"]
        assert (await now.http.get("/health")).status_code == 200
