"""Decode workers with small pools: none is asked for more than it holds, and all requests are answered."""

from __future__ import annotations

import asyncio
from pathlib import Path

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
