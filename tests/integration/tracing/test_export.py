"""Spans go to a collector, and a collector that is dead costs no request."""

from __future__ import annotations

import logging
import socket

import pytest

from tests.support.tracing.collector import collector
from tests.support.tracing.system import services_here


async def test_a_collector_gets_the_spans_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async with collector() as kept:
        monkeypatch.setenv("TANDEM_TRACE_ENDPOINT", f"http://{kept.address}")
        async with services_here() as here:
            for number in range(3):
                await here.ask(headers={"X-Request-Id": f"r{number}"})
            traces = [await here.settled_trace(f"r{number}") for number in range(3)]
        # Closing the services has sent what was still waiting.
        wanted = {
            (span.service, trace.trace_id, span.span_id, span.parent_id, span.name, span.start_ns, span.end_ns)
            for trace in traces
            for span in trace.spans
        }
        found = {
            (
                service,
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.name,
                span.start_time_unix_nano,
                span.end_time_unix_nano,
            )
            for service, span in kept.spans
        }
    assert found == wanted
    assert len(kept.spans) == len(found), "no span is sent twice"


async def test_a_dead_collector_is_told_once_and_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    for name, value in {
        "ENDPOINT": f"http://{address}",
        "EXPORT_DELAY_MS": "10",
        "EXPORT_TIMEOUT_MS": "100",
        "EXPORT_QUEUE_SPANS": "8",
        "EXPORT_BATCH_SPANS": "4",
    }.items():
        monkeypatch.setenv(f"TANDEM_TRACE_{name}", value)
    with caplog.at_level(logging.INFO):
        async with services_here() as here:
            for number in range(10):
                response = await here.ask(headers={"X-Request-Id": f"r{number}"})
                assert response.status_code == 200
            assert (await here.settled_trace("r9")).spans, "what is kept does not depend on the collector"
    told = [record.getMessage() for record in caplog.records if address in record.getMessage()]
    assert sorted(told) == [f"spans do not reach the collector at http://{address} and are dropped until they do"] * 3
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_nothing_is_exported_by_default() -> None:
    async with services_here() as here:
        assert here.gateway._tracing._exporter is None
        assert all(host._tracing._exporter is None for host in here.hosts.values())
