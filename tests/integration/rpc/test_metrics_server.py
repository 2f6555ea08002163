"""/metrics over HTTP, and what each kind of metric looks like there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc import metrics_server
from tandem.rpc.loop_lag import measure_lag
from tandem.rpc.metrics import Distribution, Family, Kind, Metrics, Sample
from tandem.rpc.metrics_server import MetricsServer
from tandem.rpc.process_metrics import add_process_metrics

pytestmark = pytest.mark.timeout(60)

WAITS = Family("test_wait_seconds", Kind.HISTOGRAM, "Waits.", ("who",))
SEEN = Family("test_seen", Kind.COUNTER, "Seen.")
LEFT = Family("test_left", Kind.GAUGE, "Left.", ("who",))


@asynccontextmanager
async def served(metrics: Metrics) -> AsyncIterator[httpx.AsyncClient]:
    async def render() -> bytes:
        return metrics.render()

    server = MetricsServer("127.0.0.1:0", render)
    address = await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client:
            yield client
    finally:
        await server.close()


def series(text: str) -> dict[str, float]:
    """Value by name and labels."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_values_kept_elsewhere_are_read_for_each_scrape() -> None:
    now = [Sample(SEEN, 1), Sample(LEFT, 5, ("a",))]
    metrics = Metrics()
    metrics.read((SEEN, LEFT, WAITS), lambda: now)
    async with served(metrics) as client:
        first = series((await client.get("/metrics")).text)
        now[:] = [
            Sample(SEEN, 4),
            Sample(LEFT, 2, ("a",)),
            Sample(LEFT, 3, ("b",)),
            Sample(WAITS, Distribution((0.5, 1), (2, 0, 1), 9.5), ("a",)),
        ]
        second = series((await client.get("/metrics")).text)
    assert first == {"test_seen_total[]": 1, "test_left[('who', 'a')]": 5}
    assert second == {
        "test_seen_total[]": 4,
        "test_left[('who', 'a')]": 2,
        "test_left[('who', 'b')]": 3,
        "test_wait_seconds_bucket[('le', '0.5'), ('who', 'a')]": 2,
        "test_wait_seconds_bucket[('le', '1.0'), ('who', 'a')]": 2,
        "test_wait_seconds_bucket[('le', '+Inf'), ('who', 'a')]": 3,
        "test_wait_seconds_count[('who', 'a')]": 3,
        "test_wait_seconds_sum[('who', 'a')]": 9.5,
    }


def test_a_value_of_another_kind_and_a_name_used_twice_are_refused() -> None:
    metrics = Metrics()
    metrics.read((SEEN,), lambda: [Sample(SEEN, Distribution((1,), (0, 0), 0))])
    with pytest.raises(TypeError, match="test_seen"):
        metrics.render()
    with pytest.raises(ValueError, match="test_seen"):
        metrics.read((SEEN,), list)


async def test_a_process_tells_of_itself() -> None:
    metrics = Metrics()
    lag = add_process_metrics(metrics, "test")
    async with served(metrics) as client:
        response = await client.get("/metrics")
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        found = series(response.text)
        told = {family.exposed for family in metrics.families}
        names = {name.partition("[")[0].removesuffix("_count") for name in found}
        assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"} <= told & names
        assert [name for name in found if "('service', 'test')" in name] != []
        assert "tandem_event_loop_lag_seconds_count[]" in found
        lag.observe(3)
        assert series((await client.get("/metrics")).text)["tandem_event_loop_lag_seconds_sum[]"] == 3


async def test_only_metrics_is_there() -> None:
    async with served(Metrics()) as client:
        assert (await client.get("/")).status_code == 404
        assert (await client.post("/metrics")).status_code == 405
        assert (await client.get("/metrics?all=1")).status_code == 200


async def test_more_connections_than_are_allowed_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "MAX_CONNECTIONS", 3)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> bytes:
        begun.set()
        await go_on.wait()
        return b"late\n"

    server = MetricsServer("127.0.0.1:0", slow)
    address = await server.start()
    async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=20) as client:
        async with asyncio.timeout(20):
            first = asyncio.create_task(client.get("/metrics"))
            await begun.wait()
            others = await asyncio.gather(*(client.get("/metrics") for _ in range(6)))
            go_on.set()
            assert (await first).text == "late\n"
    assert {other.status_code for other in others} == {503}
    await server.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:http", "127.0.0.1:99999", "192.0.2.1:0", ""])
async def test_an_address_that_cannot_be_used_is_named(address: str) -> None:
    with pytest.raises(TandemError, match="metrics can't be served") as caught:
        await MetricsServer(address, _nothing).start()
    assert caught.value.reason is ErrorReason.INVALID_ARGUMENT


async def _nothing() -> bytes:
    return b""


async def test_lag_is_what_the_loop_is_late_by() -> None:
    seen: asyncio.Queue[float] = asyncio.Queue()
    task = asyncio.create_task(measure_lag(seen.put_nowait))
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(20):
        assert await seen.get() >= 0
        hold_until = loop.time() + 0.5
        while loop.time() < hold_until:  # holds the loop
            pass
        while await seen.get() < 0.3:
            pass
    task.cancel()
