"""A request leaves one trace over the gateway and both workers, whichever way it ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tandem.cli.trace import Trace
from tandem.core.cluster import ClusterView, WorkerInfo
from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.client import open_channel
from tandem.rpc.tracing.layout import ShownSpan, layout
from tandem.v1 import admin_pb2, admin_pb2_grpc, trace_pb2, trace_pb2_grpc
from tests.support.tracing.page import check_documented
from tests.support.tracing.system import CALLER, PROMPT, SLOW, TRACE_ID, give_up_one, named, one, room_of, services_here

TOLERANCE_NS = 50_000_000
"""Ends are noted by whoever hears of them, so that a child may end a moment after its parent."""


def tree(trace: Trace) -> dict[str, list[str]]:
    """Names of the children of each name, sorted, each once."""
    by_id = {span.span_id: span for span in trace.spans}
    found: dict[str, set[str]] = {}
    for span in trace.spans:
        if span.parent_id in by_id:
            found.setdefault(by_id[span.parent_id].name, set()).add(span.name)
    return {name: sorted(children) for name, children in found.items()}


def check_whole(trace: Trace, caller: str = "") -> None:
    """Every parent is there, all spans have ended, none lies outside its parent, and the page tells of all."""
    check_documented(trace)
    by_id = {span.span_id: span for span in trace.spans}
    assert len(by_id) == len(trace.spans)
    roots = [span for span in trace.spans if span.parent_id not in by_id]
    assert [span.parent_id for span in roots] == [caller]
    for span in trace.spans:
        assert span.start_ns <= span.end_ns, span
        if parent := by_id.get(span.parent_id):
            assert parent.start_ns - TOLERANCE_NS <= span.start_ns, (parent, span)
            assert span.end_ns <= parent.end_ns + TOLERANCE_NS, (parent, span)


async def test_one_trace_tells_where_the_time_went() -> None:
    headers = {"X-Request-Id": "mine", "traceparent": f"00-{TRACE_ID}-{CALLER}-01", "tracestate": "vendor=1"}
    async with services_here(mock=SLOW) as here:
        response = await here.ask(PROMPT, new_tokens=40, headers=headers)
        trace = await here.settled_trace("mine")
        same = await here.trace(TRACE_ID)
    usage = response.json()["usage"]
    root = one(trace, "POST /v1/completions")
    assert (trace.trace_id, trace.dropped, trace.silent) == (TRACE_ID, 0, {})
    assert response.headers["traceparent"] == f"00-{TRACE_ID}-{root.span_id}-01"
    assert {span.span_id for span in same.spans} == {span.span_id for span in trace.spans}
    check_whole(trace, CALLER)
    # An engine that begins before the grant is there has no queue.
    queue = [span.name for span in named(trace, "queue")]
    assert tree(trace) == {
        "POST /v1/completions": ["attempt", "read", "route", "tokenize"],
        "attempt": ["decode", "first_token", "prefill", "stream"],
        "prefill": ["chunk", "compute", "grant_wait", "landing", *queue, "ticket"],
        "decode": ["close", "decode_queue", "generate", "link_wait", "receive", "reserve", "ticket"],
    }
    assert root.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert root.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["tandem.request_id"] == "mine"
    chunks, receive = named(trace, "chunk"), one(trace, "receive")
    assert len(chunks) == -(-usage["prompt_tokens"] // SLOW["chunk_tokens"])
    assert sum(int(chunk.attributes["tandem.bytes"]) for chunk in chunks) == receive.attributes["tandem.bytes"]
    assert sum(int(chunk.attributes["tandem.pages"]) for chunk in chunks) == receive.attributes["tandem.pages"]
    assert {chunk.attributes["tandem.provider"] for chunk in chunks} == {"tcp"}
    assert [name for name, _ in receive.events] == ["landed"] * len(chunks)
    attempt, route = one(trace, "attempt"), one(trace, "route")
    assert attempt.attributes["tandem.outcome"] == "complete"
    assert str(attempt.attributes["tandem.decode.worker"]).startswith("d0@")
    assert route.attributes["tandem.prefill.worker"] == attempt.attributes["tandem.prefill.worker"]
    room = attempt.attributes["tandem.room"]
    assert [one(trace, leg).attributes["tandem.room"] for leg in ("prefill", "decode")] == [room, room]
    assert {span.service for span in trace.spans} == {"tandem-gateway", "tandem-prefill", "tandem-decode"}
    assert layout(trace.spans)[0].span is trace.spans[0]


async def test_a_stream_has_its_first_token_from_prefill() -> None:
    async with services_here(mock=SLOW) as here:
        response = await here.ask(PROMPT, new_tokens=40, stream=True)
        trace = await here.settled_trace(response.headers["x-request-id"])
    check_whole(trace)
    assert one(trace, "first_token").attributes["tandem.first_token.source"] == "prefill"
    assert one(trace, "first_token").end_ns == one(trace, "stream").start_ns


async def test_what_is_not_sampled_leaves_nothing_and_keeps_its_trace_id() -> None:
    headers = {"X-Request-Id": "mine", "traceparent": f"00-{TRACE_ID}-{CALLER}-00"}
    async with services_here() as here:
        response = await here.ask(headers=headers)
        with pytest.raises(TandemError, match="not sampled"):
            await here.trace("mine")
        with pytest.raises(TandemError):
            await here.trace(TRACE_ID)
        assert response.status_code == 200
        assert response.headers["traceparent"].startswith(f"00-{TRACE_ID}-")
        assert response.headers["traceparent"].endswith("-00")


async def test_a_retried_request_shows_both_attempts() -> None:
    async with services_here(prefills=2, decodes=2, mock=SLOW) as here:
        asking = asyncio.create_task(here.ask(PROMPT, new_tokens=10, headers={"X-Request-Id": "mine"}))
        await give_up_one(here, ErrorReason.ENGINE_FAILED)
        response = await asking
        trace = await here.settled_trace("mine")
    check_documented(trace)
    assert response.status_code == 200
    first, second = named(trace, "attempt")
    assert (first.attributes["tandem.outcome"], second.attributes["tandem.outcome"]) == ("ENGINE_FAILED", "complete")
    assert (first.failed, second.failed, one(trace, "POST /v1/completions").failed) == (True, False, False)
    assert first.attributes["tandem.decode.worker"] != second.attributes["tandem.decode.worker"]
    assert [span.attributes["tandem.avoided_workers"] for span in named(trace, "route")] == [0, 1], (
        "decode was to blame"
    )
    assert len(named(trace, "backoff")) == 1
    fenced = [span for span in named(trace, "fence") if span.parent_id in legs_of(trace, first.span_id)]
    assert {span.service for span in fenced} == {"tandem-prefill", "tandem-decode"}
    failed = [leg for leg in named(trace, "decode") + named(trace, "prefill") if leg.parent_id == first.span_id]
    assert {leg.failed for leg in failed} == {True}


async def test_a_failed_request_tells_its_reason() -> None:
    async with services_here(mock=SLOW, max_attempts=1) as here:
        asking = asyncio.create_task(here.ask(PROMPT, new_tokens=10, headers={"X-Request-Id": "mine"}))
        await give_up_one(here, ErrorReason.ENGINE_FAILED)
        response = await asking
        trace = await here.settled_trace("mine")
    check_documented(trace)
    root, attempt = one(trace, "POST /v1/completions"), one(trace, "attempt")
    assert response.status_code == root.attributes["http.response.status_code"] == 500
    for span in (root, attempt, one(trace, "decode")):
        assert (span.failed, span.attributes["error.type"], span.message) == (True, "ENGINE_FAILED", "planted")
    assert one(trace, "compute").attributes["error.type"] == "ENGINE_FAILED"


async def test_what_the_client_is_to_blame_for_is_no_failure() -> None:
    async with services_here() as here:
        response = await here.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 10**6})
        trace = await here.settled_trace(response.headers["x-request-id"])
    check_documented(trace)
    root = one(trace, "POST /v1/completions")
    assert response.status_code == root.attributes["http.response.status_code"] == 400
    assert (root.failed, root.attributes["error.type"]) == (False, "CONTEXT_TOO_LONG")


async def test_a_client_that_goes_is_seen_in_every_service() -> None:
    async with services_here(mock=SLOW) as here:
        asking = asyncio.create_task(here.ask(PROMPT, new_tokens=200, headers={"X-Request-Id": "mine"}))
        await room_of(here, "d0")
        asking.cancel()
        await asyncio.wait({asking})
        trace = await here.settled_trace("mine")
    check_documented(trace)
    assert one(trace, "POST /v1/completions").attributes["error.type"] == "CANCELLED"
    assert one(trace, "attempt").attributes["tandem.outcome"] == "CANCELLED"
    assert one(trace, "decode").attributes["error.type"] == "CANCELLED"


async def test_every_answer_of_a_batch_has_its_attempt() -> None:
    async with services_here() as here:
        body = {"prompt": ["one", "two"], "n": 2, "max_tokens": 4}
        response = await here.http.post("/v1/completions", json=body)
        trace = await here.settled_trace(response.headers["x-request-id"])
    check_documented(trace)
    assert sorted(int(span.attributes["tandem.sequence"]) for span in named(trace, "attempt")) == [0, 1, 2, 3]
    assert one(trace, "POST /v1/completions").attributes["gen_ai.request.choice.count"] == 4


async def test_each_rank_has_spans_of_its_own_and_chunks_of_layers_say_of_which() -> None:
    async with services_here(mock={"tp_size": 2, "layers": 2, "layers_per_push": 1}) as here:
        response = await here.ask("short")
        trace = await here.settled_trace(response.headers["x-request-id"])
    check_whole(trace)
    assert sorted(str(span.attributes["tandem.rank"]) for span in named(trace, "receive")) == [
        "dp0.pp0.tp0",
        "dp0.pp0.tp1",
    ]
    of_layers = {
        (span.attributes["tandem.first_buffer"], span.attributes["tandem.buffers"]) for span in chunks_of(trace)
    }
    assert of_layers == {(0, 2), (1, 2)}, "keys and values of one layer each; all keys lie before all values"


async def test_what_an_operator_asks_is_traced_through_bootstrap() -> None:
    metadata = (("traceparent", f"00-{TRACE_ID}-{CALLER}-01"),)
    async with services_here() as here:
        async with open_channel(here.gateway.admin_address) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            await stub.DrainWorker(admin_pb2.DrainWorkerRequest(worker_id="d0"), metadata=metadata)  # type: ignore[misc]
        trace = await here.trace(TRACE_ID)
        async with open_channel(here.gateway._settings.bootstrap_address) as channel:
            wanted = trace_pb2.GetTraceRequest(trace_id=TRACE_ID)
            found = await trace_pb2_grpc.TraceServiceStub(channel).GetTrace(wanted)  # type: ignore[misc]
    (asked,), (drained,) = trace.spans, found.spans
    assert (asked.name, asked.parent_id) == ("tandem.v1.AdminService/DrainWorker", CALLER)
    assert (drained.name, drained.parent_span_id) == ("tandem.v1.BootstrapService/Drain", asked.span_id)
    assert drained.service == "tandem-bootstrap"


async def test_a_worker_that_does_not_answer_is_named() -> None:
    async with services_here(decodes=2, mock=SLOW) as here:
        await here.ask(headers={"X-Request-Id": "mine"})
        ended = here.hosts["d1"]
        view = here.gateway._pool.view
        info = view.workers[ended.life.worker_id]
        here.gateway._pool.follow(lambda: _moved(view, info), lambda: True)
        trace = await here.trace("mine")
    assert list(trace.silent) == ["d1"]
    assert "UNAVAILABLE" in trace.silent["d1"]
    assert one(trace, "attempt")


async def test_many_requests_of_one_trace_are_told_apart() -> None:
    async with services_here() as here:
        for name in ("first", "second"):
            traceparent = f"00-{TRACE_ID}-{CALLER}-01"
            await here.ask(headers={"X-Request-Id": name, "traceparent": traceparent})
        first, whole = await here.settled_trace("first"), await here.settled_trace(TRACE_ID)
    assert len(named(first, "attempt")) == 1
    assert one(first, "POST /v1/completions").attributes["tandem.request_id"] == "first"
    assert len(named(whole, "attempt")) == 2


def _moved(view: ClusterView, info: WorkerInfo) -> ClusterView:
    """The same, with a worker at an address where nobody is."""
    return replace(view, workers={**view.workers, info.life.worker_id: replace(info, address="127.0.0.1:1")})


def chunks_of(trace: Trace) -> list[ShownSpan]:
    """Transfers that are not of the metadata row only."""
    return [span for span in named(trace, "chunk") if span.attributes["tandem.pages"]]


def legs_of(trace: Trace, attempt: str) -> set[str]:
    """Ids of an attempt's legs."""
    return {span.span_id for span in trace.spans if span.parent_id == attempt}
