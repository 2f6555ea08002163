"""Decode workers with small pools: none is asked for more than it holds, and all requests are answered."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from tests.support.gateway.process import gateway_process
from tests.support.mock.oracle import Oracle
from tests.support.system.asking import body, generate, prompt_of
from tests.support.system.system import is_idle, running_system, watch_status

PAGES, PAGE = 20, 16
PROMPT, NEW = 40, 152
"""60 % of a worker's pages."""
SMALL = ("--ratio", "1:2", "--engine-arg", f"pages={PAGES}")


async def test_two_sequences_that_no_worker_holds_together_are_never_on_one(tmp_path: Path, oracle: Oracle) -> None:
    with running_system(tmp_path, "--engine", "mock", *SMALL) as system:
        members = {name: one for name, one in (await system.members()).items() if name.startswith("decode")}
        most = dict.fromkeys(members, 0)

        async def watch(name: str) -> None:
            async for status in watch_status(members[name].info):
                most[name] = max(most[name], status.running + status.waiting)

        watching = [asyncio.create_task(watch(name)) for name in members]
        async with system.client() as client:
            prompts = [prompt_of(PROMPT, seed=number) for number in range(4)]
            answers = await asyncio.gather(*(generate(client, prompt, NEW, ignore_eos=True) for prompt in prompts))
            refused = await client.post("/generate", json=body(prompts[0], PAGES * PAGE))
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.tokens == oracle.predict(prompt, NEW, ignore_eos=True).tokens
        for task in watching:
            task.cancel()
        assert set(most.values()) == {1}
        assert refused.status_code == 400
        assert f"up to {PROMPT + PAGES * PAGE} tokens" in refused.text
        assert f"holds {PAGES * PAGE} at most" in refused.text
        assert all(map(is_idle, (await system.wait_idle()).values()))


NEW_LARGE = 8
FLOOD = 4
"""Clients of another gateway: two of their requests fill the only worker, so that two always wait."""
FLOOD_NEW = 9 * PAGE - PROMPT
LARGE_PROMPT = (PAGES - 1) * PAGE - NEW_LARGE
"""All pages but one."""
MOST = 40
"""Answers that the others get before it counts as starved; four or so are due."""


async def test_a_large_request_gets_the_worker_that_another_gateway_would_fill(tmp_path: Path, oracle: Oracle) -> None:
    engine = ("--engine", "mock", "--engine-arg", f"pages={PAGES}", "--engine-arg", "decode_us_per_step=10000")
    with running_system(tmp_path, *engine, "--env", "gateway:TANDEM_GATEWAY_QUEUE_PATIENCE_MS=0") as system:
        async with (
            gateway_process(system.state.bootstrap) as (_, http),
            httpx.AsyncClient(base_url=f"http://{http}", timeout=60, trust_env=False) as other,
            system.client() as client,
        ):
            full, done, answered = asyncio.Event(), asyncio.Event(), 0

            async def flood(number: int) -> None:
                nonlocal answered
                prompt = prompt_of(PROMPT, seed=100 + number)
                new = FLOOD_NEW // (1 + (number == 0))  # so that no two that run together end together
                while not done.is_set() and answered < MOST:
                    answer = await generate(other, prompt, new, ignore_eos=True)
                    assert answer.tokens == oracle.predict(prompt, new, ignore_eos=True).tokens
                    answered, new = answered + 1, FLOOD_NEW
                    full.set()

            async with asyncio.TaskGroup() as group:
                for number in range(FLOOD):
                    group.create_task(flood(number))
                await full.wait()
                large = prompt_of(LARGE_PROMPT, seed=1)
                answer = await generate(client, large, NEW_LARGE, ignore_eos=True)
                done.set()
            assert answer.tokens == oracle.predict(large, NEW_LARGE, ignore_eos=True).tokens
            assert answered < MOST, "the worker was filled again and again"
        assert all(map(is_idle, (await system.wait_idle()).values()))
