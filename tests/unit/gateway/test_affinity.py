"""Requests that name a session, or begin alike, on their way to the policies."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from opentelemetry.trace import INVALID_SPAN

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RequestId, Role
from tandem.core.policies import PolicyName
from tandem.gateway.routing.room_runs import Journey
from tests.support.gateway.doubles import (
    AppLimits,
    NotingWorker,
    NotingWorkers,
    finish,
    http_client,
    router_of,
    sequence,
    tokens,
)

CHAT, TEXT, GENERATE, MESSAGES = "/v1/chat/completions", "/v1/completions", "/generate", "/v1/messages"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hello"}]},
    TEXT: {"prompt": "hello"},
    GENERATE: {"text": "hello"},
    MESSAGES: {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]},
}


class AnsweringWorker(NotingWorker):
    """Ends every room at once."""

    def submit(self, submit: Any, leg: Any) -> None:
        """Notes it, and answers soon."""
        super().submit(submit, leg)
        asyncio.get_running_loop().call_soon(self._end, submit.room)

    def _end(self, room: int) -> None:
        if room in self.legs:
            self.bring(finish(room))


def six_each() -> NotingWorkers:
    """Six workers of each role; those of decode answer."""
    return NotingWorkers(
        [NotingWorker(f"p{number}", Role.PREFILL) for number in range(6)],
        [AnsweringWorker(f"d{number}", Role.DECODE) for number in range(6)],
    )


class Caller:
    """Sends requests and tells which pair of workers got each."""

    def __init__(self, client: httpx.AsyncClient, workers: NotingWorkers) -> None:
        self._client = client
        self._workers = workers

    async def pair_of(self, path: str, headers: Mapping[str, str] | None = None, **fields: Any) -> tuple[str, ...]:
        """Prefill's and decode's id."""
        everyone = self._workers.prefills + self._workers.decodes
        before = [len(worker.submits) for worker in everyone]
        response = await self._client.post(path, json=BODIES[path] | fields, headers=dict(headers or {}))
        assert response.status_code == 200, response.text
        return tuple(
            worker.life.worker_id
            for worker, old in zip(everyone, before, strict=True)
            for _ in range(len(worker.submits) - old)
        )


@pytest.mark.parametrize("path", BODIES)
async def test_a_session_of_the_header_stays_where_it_is(path: str) -> None:
    workers = six_each()
    async with http_client(workers, AppLimits(policy=PolicyName.CONSISTENT_HASH)) as client:
        caller = Caller(client, workers)
        first = await caller.pair_of(path, {"X-Session-Id": "one"})
        assert [await caller.pair_of(path, {"x-session-id": "one"}) for _ in range(5)] == [first] * 5
        others = {await caller.pair_of(path, {"X-Session-Id": f"other {number}"}) for number in range(20)}
        assert len(others) > 5, "sessions are spread"
        assert len({await caller.pair_of(path) for _ in range(20)}) > 5, "and so is what names none"


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_the_header_goes_before_the_cache_key_and_that_before_the_user(path: str) -> None:
    workers = six_each()
    async with http_client(workers, AppLimits(policy=PolicyName.CONSISTENT_HASH)) as client:
        caller = Caller(client, workers)
        homes = {name: await caller.pair_of(path, {"X-Session-Id": name}) for name in ("s0", "s2", "s4")}
        assert len(set(homes.values())) == 3, "the names are chosen so"
        for _ in range(3):
            assert await caller.pair_of(path, user="s0") == homes["s0"]
            assert await caller.pair_of(path, user="s0", prompt_cache_key="s2") == homes["s2"]
            both = await caller.pair_of(path, {"X-Session-Id": "s4"}, user="s0", prompt_cache_key="s2")
            assert both == homes["s4"]


async def test_a_session_that_is_no_text_is_refused_and_an_empty_one_is_none() -> None:
    workers = six_each()
    async with http_client(workers, AppLimits(policy=PolicyName.CONSISTENT_HASH)) as client:
        refused = await client.post(CHAT, json=BODIES[CHAT] | {"prompt_cache_key": ["a"]})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "prompt_cache_key"
        caller = Caller(client, workers)
        assert len({await caller.pair_of(CHAT, user="", prompt_cache_key="") for _ in range(20)}) > 5


async def test_prompts_that_begin_alike_meet_whatever_their_session_and_way_in() -> None:
    workers = six_each()
    async with http_client(workers, AppLimits(policy=PolicyName.PREFIX_HASH)) as client:
        caller = Caller(client, workers)
        first = await caller.pair_of(TEXT, prompt="beginning of one")
        assert await caller.pair_of(TEXT, {"X-Session-Id": "x"}, prompt="beginning of another") == first
        assert await caller.pair_of(GENERATE, text="beginnin") == first
        assert await caller.pair_of(TEXT, prompt=[ord(letter) for letter in "beginnings"]) == first
        others = {await caller.pair_of(TEXT, prompt=f"begin {number} otherwise") for number in range(10, 30)}
        assert len(others) > 5


async def test_an_answer_that_goes_on_elsewhere_has_the_prefix_of_its_prompt() -> None:
    workers = NotingWorkers(
        [NotingWorker(f"p{number}", Role.PREFILL) for number in range(6)],
        [NotingWorker(f"d{number}", Role.DECODE) for number in range(6)],
    )
    router = router_of(workers, policy=PolicyName.PREFIX_HASH)
    one = Journey(RequestId("req"), INVALID_SPAN, asyncio.get_running_loop().time() + 60)
    task = asyncio.create_task(router.run(sequence(), one, lambda _: True))
    await asyncio.sleep(0)
    [(prefill, first)] = [(leg, leg.submits[0]) for leg in workers.prefills if leg.submits]
    [decode] = [leg for leg in workers.decodes if leg.submits]
    decode.bring(tokens(first.room, 65, text="A"))
    prefill.submitted.clear()
    decode.lose(TandemError(ErrorReason.PEER_LOST, "gone"))
    second = await prefill.next_submit()
    assert list(second.input_ids) == [1, 2, 3, 65]
    task.cancel()
    await asyncio.wait({task})
