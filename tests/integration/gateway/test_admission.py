"""Requests that wait for their turn, over real sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from tandem.v1 import session_pb2
from tests.support.gateway.cluster import Cluster, cluster
from tests.support.gateway.fake_worker import MODEL, Send, count_up

PROMPT = {"model": MODEL, "prompt": "hello", "max_tokens": 4}


class Gate:
    """A decode worker that begins when it may."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def decode(self, submit: session_pb2.Submit, send: Send) -> None:
        """Waits, then counts."""
        await self.open.wait()
        await count_up(submit, send)


def by(key: str, name: str = "") -> dict[str, str]:
    """Headers of a request."""
    return {"Authorization": f"Bearer {key}", "X-Request-Id": name or key}


async def metric(now: Cluster, line: str) -> float:
    """The value of one line of /metrics."""
    text = (await now.http.get("/metrics", headers=by("one"))).text
    found = [one for one in text.splitlines() if one.startswith(f"{line} ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


async def until(now: Cluster, line: str, value: float) -> None:
    """Returns when a metric has a value."""
    for _ in range(3000):
        if await metric(now, line) == value:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{line} is {await metric(now, line)}, not {value}")


TENANTS = """
[tenants.key-1]
weight = 1

[tenants.key-2]
weight = 3

[tenants.key-3]
requests_per_min = 3
"""
WAITING = 'tandem_gateway_waiting{class="normal"}'


async def test_what_is_too_much_for_now_waits_and_is_served() -> None:
    gate = Gate()
    async with cluster(decode=[gate.decode], max_concurrent=2) as now, asyncio.TaskGroup() as group:
        answers = [group.create_task(now.http.post("/v1/completions", json=PROMPT)) for _ in range(6)]
        await until(now, WAITING, 4)
        await now.decodes[0].wait_until(lambda worker: len(worker.submits) == 2)
        gate.open.set()
        assert [(await answer).status_code for answer in answers] == [200] * 6
        assert await metric(now, WAITING) == 0
        assert await metric(now, "tandem_gateway_sequences_in_flight") == 0


async def test_a_client_that_goes_while_it_waits_leaves_nothing_behind() -> None:
    gate = Gate()
    async with cluster(decode=[gate.decode], max_concurrent=1) as now:
        first = asyncio.create_task(now.http.post("/v1/completions", json=PROMPT))
        await now.decodes[0].wait_until(lambda worker: len(worker.submits) == 1)
        async with httpx.AsyncClient(base_url=now.http.base_url) as other:
            gone = [asyncio.create_task(other.post("/v1/completions", json=PROMPT)) for _ in range(3)]
            await until(now, WAITING, 3)
            for task in gone:
                task.cancel()
            await asyncio.wait(gone)
        await until(now, WAITING, 0)
        gate.open.set()
        assert (await first).status_code == 200
        await until(now, "tandem_gateway_sequences_in_flight", 0)
        assert len(now.decodes[0].submits) == len(now.prefills[0].submits) == 1, "they never came to a worker"


async def test_a_deadline_while_it_waits_is_told_and_reaches_no_worker() -> None:
    gate = Gate()
    async with cluster(decode=[gate.decode], max_concurrent=1) as now:
        first = asyncio.create_task(now.http.post("/v1/completions", json=PROMPT))
        await now.decodes[0].wait_until(lambda worker: len(worker.submits) == 1)
        late = await now.http.post("/v1/completions", json=PROMPT, headers={"X-Request-Timeout": "0.1"})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        gate.open.set()
        await first
        assert len(now.decodes[0].submits) == 1
        assert await metric(now, 'tandem_gateway_refusals_total{limit="expired"}') == 1


async def test_a_timeout_of_the_header_ends_both_legs() -> None:
    gate = Gate()
    async with cluster(decode=[gate.decode]) as now:
        late = await now.http.post("/v1/completions", json=PROMPT, headers={"X-Request-Timeout": "1"})
        assert late.status_code == 504
        assert 1 <= now.decodes[0].submits[0].timeout_ms <= 1000
        await now.decodes[0].wait_until(lambda worker: len(worker.cancels) == 1)


async def test_a_flood_of_one_tenant_leaves_the_other_its_share(tmp_path: Path) -> None:
    file, gate = tmp_path / "tenants.toml", Gate()
    file.write_text(TENANTS, encoding="utf-8")
    settings = {"api_keys": ("one", "two", "three"), "tenants_file": file, "max_concurrent": 2}
    async with cluster(decode=[gate.decode], **settings) as now, asyncio.TaskGroup() as group:
        post = now.http.post
        flood = [
            group.create_task(post("/v1/completions", json=PROMPT, headers=by("one", f"one-{place}")))
            for place in range(40)
        ]
        await until(now, WAITING, 38)
        others = [
            group.create_task(post("/v1/completions", json=PROMPT, headers=by("two", f"two-{place}")))
            for place in range(24)
        ]
        await until(now, WAITING, 62)
        gate.open.set()
        assert {(await answer).status_code for answer in [*flood, *others]} == {200}
    order = [submit.request_id.partition("-")[0] for submit in now.decodes[0].submits]
    turns = order[2:30]
    assert turns.count("two") == 21, "of those that came later, three of four"
    assert order.index("two") <= 3


async def test_limits_per_minute_hold_over_sockets(tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(TENANTS, encoding="utf-8")
    async with cluster(api_keys=("one", "two", "three"), tenants_file=file) as now:
        answers = [await now.http.post("/v1/completions", json=PROMPT, headers=by("three")) for _ in range(4)]
        assert [answer.status_code for answer in answers[:3]] == [200] * 3
        free = await now.http.post("/v1/completions", json=PROMPT, headers=by("one"))
        assert free.status_code == 200
    assert answers[2].headers["x-ratelimit-limit-requests"] == "3"
    if answers[3].status_code != 200:  # a machine that took 20 s for three requests has a place for the fourth
        assert answers[3].status_code == 429
        assert 1 <= int(answers[3].headers["retry-after"]) <= 20


async def test_decode_is_asked_for_no_more_tokens_than_its_pages_hold() -> None:
    """The worker has 100 pages of 16 tokens."""
    gate, large = Gate(), {**PROMPT, "max_tokens": 500}
    async with cluster(decode=[gate.decode]) as now, asyncio.TaskGroup() as group:
        answers = [group.create_task(now.http.post("/v1/completions", json=large)) for _ in range(5)]
        await until(now, WAITING, 2)
        await now.decodes[0].wait_until(lambda worker: len(worker.submits) == 3)
        gate.open.set()
        assert [(await answer).status_code for answer in answers] == [200] * 5
