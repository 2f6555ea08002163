"""The traces that the dashboard shows: gathered once each from all services, parents before children."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.dashboard.traces import RecentTraces, shown
from tandem.rpc.tracing import names
from tandem.rpc.tracing.layout import ShownSpan
from tandem.rpc.tracing.provider import Tracing, remote
from tandem.rpc.tracing.settings import TraceSettings
from tandem.v1 import admin_pb2, trace_pb2

MS = 1_000_000


def span(name: str, parent: str, start_ms: int, end_ms: int, **more: Any) -> ShownSpan:
    """A span whose id is its name."""
    return ShownSpan(
        name, parent, name, "tandem-prefill", "prefill-0", start_ms * MS, end_ms * MS, bool(more), "", {**more}
    )


def test_a_trace_is_laid_out_for_the_page() -> None:
    trace = shown("r1", [span("chunk", "leg", 3, 5), span("leg", "root", 2, 9), span("root", "", 0, 10)])
    assert [(step.name, step.parent, step.offset_ms, step.duration_ms) for step in trace.spans] == [
        ("root", None, 0, 10),
        ("leg", 0, 2, 7),
        ("chunk", 1, 3, 2),
    ]
    assert (trace.request_id, trace.ended_ms, trace.duration_ms) == ("r1", 10, 10)
    assert {step.service for step in trace.spans} == {"prefill-0"}


def test_a_failed_step_says_its_reason() -> None:
    (step,) = shown("r1", [span("leg", "", 0, 1, **{names.ERROR_TYPE: "link_lost"})]).spans
    assert step.status == "link_lost"


def test_a_step_tells_its_facts_and_attributes_but_no_text_of_prompts_and_answers() -> None:
    told = {names.CHUNK: 1, names.PAGES: 4}
    text = {names.INPUT_MESSAGES: "a secret", names.OUTPUT_MESSAGES: "a secret"}
    (step,) = shown("r1", [replace(span("chunk", "", 0, 1), attributes={**told, **text})]).spans
    assert (step.facts, step.attributes) == ("#1  4 pages", told)


class Services:
    """All services, and tasks that run when they are told to."""

    def __init__(self) -> None:
        self.tracing = Tracing("gateway", "g", TraceSettings())
        self.asked: list[str] = []
        self.tasks: list[Coroutine[Any, Any, None]] = []
        self.full = False
        self.lost = False
        """Nobody keeps the trace."""

    async def gather(self, asked: trace_pb2.GetTraceRequest) -> admin_pb2.AdminGetTraceResponse:
        """One span."""
        self.asked.append(asked.request_id)
        if self.lost:
            return admin_pb2.AdminGetTraceResponse()
        return admin_pb2.AdminGetTraceResponse(
            spans=[trace_pb2.TraceSpan(span_id="1", name="GET", service="tandem-gateway", end_unix_ns=MS)]
        )

    def spawn(self, task: Coroutine[Any, Any, None], name: str) -> None:
        """Keeps it for `run`."""
        del name
        if self.full:
            task.close()
            raise TandemError(ErrorReason.OVERLOADED, "too many tasks")
        self.tasks.append(task)

    def run(self) -> None:
        """Runs them."""
        while self.tasks:
            asyncio.run(self.tasks.pop(0))

    def answer(self, request_id: str, *, ended: bool = True) -> None:
        """The gateway answers a request."""
        one = self.tracing.enter("GET", remote(""), {names.REQUEST_ID: request_id})
        if ended:
            one.end()


def test_requests_are_gathered_once_and_shown_at_the_next_look() -> None:
    services = Services()
    recent = RecentTraces(services.tracing.ring, services.gather, services.spawn)
    for name in ("r1", "r2", "r3"):
        services.answer(name)
    services.answer("still running", ended=False)
    assert recent.last(2) == []
    services.run()
    assert [trace.request_id for trace in recent.last(2)] == ["r3", "r2"]
    services.answer("r4")
    assert [trace.request_id for trace in recent.last(2)] == ["r3", "r2"]
    services.run()
    assert [trace.request_id for trace in recent.last(2)] == ["r4", "r3"]
    assert services.asked == ["r2", "r3", "r4"], "each once"


def test_traces_are_there_where_each_look_finds_new_ones_only() -> None:
    services = Services()
    recent = RecentTraces(services.tracing.ring, services.gather, services.spawn)
    seen = []
    for look in range(4):
        for number in range(3):
            services.answer(f"{look}.{number}")
        seen.append([trace.request_id for trace in recent.last(2)])
        services.run()
    assert seen == [[], ["0.2", "0.1"], ["1.2", "1.1"], ["2.2", "2.1"]]
    assert len(recent._known) <= 4, "two that are shown, and two that are asked for"


def test_what_nobody_keeps_any_more_or_cannot_be_asked_for_is_forgotten() -> None:
    services = Services()
    recent = RecentTraces(services.tracing.ring, services.gather, services.spawn)
    services.answer("r1")
    for services.lost in (True, False):
        assert recent.last(2) == []
        services.run()
    assert [trace.request_id for trace in recent.last(2)] == ["r1"]
    assert services.asked == ["r1", "r1"]


def test_what_is_too_much_at_once_is_left_out() -> None:
    services = Services()
    services.full = True
    recent = RecentTraces(services.tracing.ring, services.gather, services.spawn)
    services.answer("r1")
    assert recent.last(2) == recent.last(2) == []
