"""GET /dashboard and its events, from a gateway over real sockets with workers that do as they are told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest

from tandem.core.errors import CATALOGUE, ErrorReason
from tandem.gateway.dashboard.ring import BUCKETS
from tandem.gateway.web.dashboard_endpoints import EVENTS, FILES, PAGE
from tests.support.gateway.cluster import Cluster, cluster
from tests.support.gateway.fake_worker import MODEL, count_up, fail_with, first_then_wait, hand_over

KEY = "a-key"
SECRET_PROMPT = "nobody may read this"


@asynccontextmanager
async def looking(now: Cluster, **headers: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """A viewer; yields its snapshots."""
    async with now.http.stream("GET", EVENTS, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield snapshots(response)


async def snapshots(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """What follows `event: snapshot`, until the stream ends."""
    kind = ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: ") and kind == "snapshot":
            yield orjson.loads(line.removeprefix("data: "))


async def until(seen: AsyncIterator[dict[str, Any]], wanted: Any) -> dict[str, Any]:
    """The first snapshot that is as wanted."""
    async with asyncio.timeout(20):
        async for snapshot in seen:
            if wanted(snapshot):
                return snapshot
    raise AssertionError("the events ended")


async def test_every_file_of_the_page_is_served_closed_to_all_but_ourselves() -> None:
    async with cluster() as now:
        for path, (_, kind) in FILES.items():
            response = await now.http.get(path)
            assert response.status_code == 200
            assert response.headers["content-type"] == kind
            policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
            assert policy["default-src"] == "'none'"
            assert {policy[f"{what}-src"] for what in ("script", "style", "img", "connect")} == {"'self'"}
            assert "unsafe" not in response.headers["content-security-policy"]
            assert response.headers["x-content-type-options"] == "nosniff"


async def test_the_page_names_only_files_that_are_served_and_has_nothing_inline() -> None:
    async with cluster() as now:
        page = (await now.http.get(PAGE)).text
    named = set(re.findall(r'(?:src|href)="([^"]+)"', page))
    assert {f"/{name}" for name in named} < FILES.keys()
    assert not re.findall(r"<style|\son\w+=|style=|<script(?![^>]*\ssrc=)", page)


async def test_a_snapshot_comes_at_once_with_all_that_is_documented() -> None:
    async with cluster([hand_over] * 2, [count_up]) as now, looking(now) as seen:
        first = await anext(seen)
    assert first.keys() == {"time_ms", "gateway", "workers", "links", "rooms", "series", "errors", "traces"}
    assert [(one["id"], one["role"], one["state"]) for one in first["workers"]] == [
        ("p0", "prefill", "ready"),
        ("p1", "prefill", "ready"),
        ("d0", "decode", "ready"),
    ]
    assert first["gateway"]["missing"] == ""
    assert first["gateway"]["bootstrap"] is True
    assert {len(points) for name, points in first["series"].items() if name != "bucket_s"} == {BUCKETS}
    assert first["rooms"] == {"waiting": 0, "prefill": 0, "transfer": 0, "decode": 0, "oldest": []}


async def test_load_is_seen_and_no_text_of_it() -> None:
    async with cluster() as now, looking(now) as seen:
        for _ in range(3):
            await now.client.completions.create(model=MODEL, prompt=SECRET_PROMPT, max_tokens=4)
        found = await until(seen, lambda one: sum(filter(None, one["series"]["requests_per_s"])) > 0)
    series = found["series"]
    assert sum(filter(None, series["tokens_per_s"])) > 0
    assert any(point is not None and point > 0 for point in series["ttft_p50_ms"])
    assert any(point is not None for point in series["itl_p95_ms"])
    assert SECRET_PROMPT not in str(found)


async def test_a_room_is_in_its_phase_and_then_gone() -> None:
    async with cluster([hand_over], [first_then_wait()]) as now, looking(now) as seen:
        body = {"model": MODEL, "prompt": SECRET_PROMPT, "max_tokens": 4, "stream": True}
        async with now.http.stream("POST", "/v1/completions", json=body, headers={"X-Request-Id": "mine"}):
            found = await until(seen, lambda one: one["rooms"]["decode"] == 1)
            (room,) = found["rooms"]["oldest"]
            assert (room["request_id"], room["phase"], room["attempt"]) == ("mine", "decode", 1)
            assert (room["prefill"], room["decode"]) == ("p0", "d0")
            assert {one["id"]: one["in_flight"] for one in found["workers"]}["d0"] == 1
            assert SECRET_PROMPT not in str(found)
        await until(seen, lambda one: one["rooms"]["decode"] == 0)


async def test_an_error_is_listed_by_reason_and_public_text() -> None:
    async with cluster(decode=[fail_with(ErrorReason.CHECKSUM_MISMATCH)]) as now, looking(now) as seen:
        body = {"model": MODEL, "prompt": SECRET_PROMPT, "max_tokens": 4}
        await now.http.post("/v1/completions", json=body, headers={"X-Request-Id": "<b>mine</b>"})
        found = await until(seen, lambda one: one["errors"])
    (error,) = found["errors"]
    text = CATALOGUE[ErrorReason.CHECKSUM_MISMATCH].public_text
    assert (error["reason"], error["request_id"], error["text"]) == ("CHECKSUM_MISMATCH", "<b>mine</b>", text)
    assert sum(filter(None, found["series"]["errors_per_s"])) > 0


async def test_a_worker_that_leaves_undrained_is_lost() -> None:
    async with cluster([hand_over], [count_up] * 2) as now, looking(now) as seen:
        await now.decodes[1].leave(now.bootstrap)
        found = await until(seen, lambda one: any(row["state"] == "lost" for row in one["workers"]))
    assert {row["id"]: row["state"] for row in found["workers"]} == {"p0": "ready", "d0": "ready", "d1": "lost"}


async def test_with_keys_the_page_is_open_and_the_events_are_not() -> None:
    async with cluster(api_keys=(KEY,)) as now:
        assert (await now.http.get(PAGE)).status_code == 200
        for headers in ({}, {"Authorization": "Bearer another"}):
            refused = await now.http.get(EVENTS, headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "unauthenticated"
        async with looking(now, Authorization=f"Bearer {KEY}") as seen:
            assert (await anext(seen))["workers"]


async def test_viewers_are_bounded_and_a_place_is_free_again_when_one_goes() -> None:
    async with cluster(dashboard_viewers=2) as now, looking(now) as first:
        async with looking(now) as second:
            await anext(first)
            await anext(second)
            refused = await now.http.get(EVENTS)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "overloaded"
        # That it has gone reaches the gateway when it reaches it.
        async with asyncio.timeout(20):
            while now.gateway._feed.viewers > 1:
                await anext(first)
        async with looking(now) as third:
            await anext(third)


async def test_it_can_be_turned_off() -> None:
    async with cluster(dashboard_viewers=0) as now:
        for path in (PAGE, EVENTS):
            refused = await now.http.get(path)
            assert refused.status_code == 404
            assert "TANDEM_GATEWAY_DASHBOARD_VIEWERS" in refused.json()["error"]["message"]


async def test_a_viewer_does_not_keep_the_gateway_from_stopping() -> None:
    async with cluster() as now, now.http.stream("GET", EVENTS) as response:
        lines = response.aiter_lines()
        await anext(lines)
        stopping = asyncio.create_task(now.gateway.stop())
        async with asyncio.timeout(10):
            rest = [line async for line in lines]
            await stopping
    assert "event: end" in rest


@pytest.mark.parametrize("path", [PAGE, "/dashboard/dashboard.js"])
async def test_the_page_takes_get_only(path: str) -> None:
    async with cluster() as now:
        assert (await now.http.post(path)).status_code == 405
