"""What the dashboard shows of each link, from real workers with the mock engine: two of each role, all four links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from tandem.core.ids import Role
from tandem.gateway.app import Gateway
from tandem.gateway.dashboard.links import Moment, link_rows, moment
from tandem.gateway.dashboard.workers import KnownWorker
from tandem.gateway.routing.crew import Crew
from tandem.gateway.routing.sessions import Session
from tandem.gateway.web.dashboard_endpoints import EVENTS
from tests.support.tracing.system import Here, services_here

pytestmark = pytest.mark.timeout(120)

PAGE_BYTES = 16 * 2 * 2 * 64
"""Tokens of a page, layers, K and V, bytes of each: as the mock's settings have them."""
TOKENS = {("p0", "d0"): 20, ("p0", "d1"): 40, ("p1", "d0"): 70, ("p1", "d1"): 130}
"""Of the one prompt that goes over each link."""
PAGES = {("p0", "d0"): 2, ("p0", "d1"): 3, ("p1", "d0"): 5, ("p1", "d1"): 9}


async def snapshots(here: Here) -> AsyncIterator[dict[str, Any]]:
    """What a viewer gets."""
    async with here.http.stream("GET", EVENTS) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield orjson.loads(line.removeprefix("data: "))


def heard(gateway: Gateway, time: float) -> Moment:
    """What the gateway has heard of all workers, as if at a time."""
    known = []
    for worker_id, info in gateway._pool.view.workers.items():
        member = gateway._pool.member_of(worker_id)
        assert member is not None
        session, status = member
        known.append(KnownWorker(info, session.up, session.in_flight, status.latest, status.heard_at))
    return moment(known, time)


def only(gateway: Gateway, pair: tuple[str, str], patch: pytest.MonkeyPatch) -> None:
    """Lets every request go to these two workers."""

    def crew(role: Role, model: str) -> Crew[Session]:
        return Crew(one for one in gateway._pool.sessions(role, model) if one.info.worker_id in pair)

    patch.setattr(gateway._pool, "crew", crew)


def all_there(snapshot: dict[str, Any]) -> bool:
    """Whether every worker has said that two rooms ended, and every link has a rate."""
    ended = [row["succeeded"] == 2 for row in snapshot["workers"]]
    return all(ended) and all(row["bytes_per_s"] is not None for row in snapshot["links"])


async def test_each_links_bytes_are_its_own_and_add_up_to_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with services_here(prefills=2, decodes=2) as here:
        async with asyncio.timeout(60):
            seen = snapshots(here)
            async for first in seen:
                if len(first["links"]) == 4 and all(row["running"] is not None for row in first["workers"]):
                    break
            before = heard(here.gateway, 0)
            for pair, tokens in TOKENS.items():
                only(here.gateway, pair, monkeypatch)
                answer = await here.http.post(
                    "/v1/completions", json={"model": "tandem-tiny", "prompt": [7] * tokens, "max_tokens": 2}
                )
                assert answer.status_code == 200, answer.text
            async for last in seen:
                if all_there(last):
                    break
            await seen.aclose()
        after = heard(here.gateway, 1)
        statuses = {name: await host.engine.status() for name, host in here.hosts.items()}

    row_bytes = statuses["d0"].metadata_bytes / 2
    rates = {(row.prefill, row.decode): row.bytes_per_s for row in link_rows(before, after)}
    assert rates == {pair: pages * PAGE_BYTES + row_bytes for pair, pages in PAGES.items()}
    for name, status in statuses.items():
        mine = sum(rate for pair, rate in rates.items() if rate is not None and name in pair)
        assert sum(status.traffic.values()) == status.kv_bytes + status.metadata_bytes == mine, name
    assert {(row["prefill"], row["decode"]) for row in last["links"]} == PAGES.keys()
