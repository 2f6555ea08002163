"""Prompts go where their beginning lies: whole systems, from what an engine's cache says to the tokens it saved."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.mock.oracle import Oracle
from tests.support.settings import environment
from tests.support.system.asking import generate, metric, prompt_of
from tests.support.system.system import System, running_system

PAGE, PAGES = 16, 12
BEGINNINGS = [prompt_of(PAGES * PAGE, seed) for seed in (1, 2, 3)]
HELD = "tandem_gateway_held_pages "
WAIT_S = 60


@pytest.fixture(scope="module")
def mock(folder: Path) -> Iterator[System]:
    """Three prefill workers that keep what they have computed, one decode worker."""
    with running_system(folder, "--engine", "mock", "--ratio", "3:1", "--engine-arg", "prefix_cache=true") as system:
        yield system


def set_policy(system: System, policy: str, *more: str) -> None:
    """`tandem set-policy`, for prefill if `more` names no role."""
    words = [sys.executable, "-m", "tandem.cli", "set-policy", policy, *(more or ("--role", "prefill"))]
    env = environment(TANDEM_CLI_STATE_FILE=str(system.folder / "state.json"))
    subprocess.run(words, env=env, check=True, capture_output=True, timeout=WAIT_S)


async def wait_held(client: httpx.AsyncClient, true: Callable[[float], bool]) -> None:
    """Returns once the number of pages that the gateway knows of is as it should be."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if true(await metric(client, HELD)):
                return
            await asyncio.sleep(0.05)


async def follow_ups(system: System, oracle: Oracle | None) -> None:
    """Each beginning once, wherever it comes; then each with other ends, which all have to come there."""
    async with system.client() as client:
        for beginning in BEGINNINGS:
            await generate(client, [*beginning, 5], 4)
        assert await metric(client, HELD) == 0, "nobody is followed yet"
        set_policy(system, "cache_aware")
        await wait_held(client, lambda pages: pages >= len(BEGINNINGS) * PAGES)
        for turn in range(4):
            for seed, beginning in enumerate(BEGINNINGS):
                prompt = [*beginning, *prompt_of(9, 100 * turn + seed)]
                answer = await generate(client, prompt, 4)
                assert answer.meta["cached_tokens"] == PAGES * PAGE, f"turn {turn} of prompt {seed}"
                if oracle is not None:
                    assert answer.tokens == oracle.predict(prompt, 4).tokens
        found = await client.post(
            "/v1/completions", json={"model": "tandem-tiny", "prompt": [*BEGINNINGS[0], 7, 8], "max_tokens": 2}
        )
        assert found.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == PAGES * PAGE
        assert await metric(client, 'tandem_gateway_held_tokens_total{role="prefill"}') == 13 * PAGES * PAGE
        assert await metric(client, "tandem_gateway_held_pages_lost_sync_total") == 0
    await system.wait_idle()


async def test_the_mock_computes_only_what_is_new(mock: System, oracle: Oracle) -> None:
    await follow_ups(mock, oracle)


async def test_pairs_by_cost_go_there_too(mock: System) -> None:
    set_policy(mock, "least_cost", "--role", "decode")
    set_policy(mock, "least_cost")
    beginning = prompt_of(PAGE * PAGES, 4)
    async with mock.client() as client:
        before = await metric(client, HELD)
        await generate(client, [*beginning, 5], 4)
        await wait_held(client, lambda pages: pages >= before + PAGES)
        for seed in range(8):
            answer = await generate(client, [*beginning, *prompt_of(9, seed)], 4)
            assert answer.meta["cached_tokens"] == PAGES * PAGE, seed


async def test_what_a_worker_held_is_gone_with_it_and_what_comes_after_is_learnt(mock: System) -> None:
    set_policy(mock, "cache_aware")
    async with mock.client() as client:
        for beginning in BEGINNINGS:
            await generate(client, [*beginning, 5], 4)
        await wait_held(client, lambda pages: pages >= len(BEGINNINGS) * PAGES)
        members = await mock.members()
        for name in ("prefill-0", "prefill-1", "prefill-2"):
            old = members[name].info.worker.incarnation
            mock.kill(name)
            await mock.wait_view(
                lambda view, name=name, old=old: name in view.workers and view.workers[name].life.incarnation != old
            )
        await wait_held(client, lambda pages: pages == 0)
        for expected in (0, PAGES * PAGE):
            answer = await generate(client, [*BEGINNINGS[0], expected % 7], 4)
            assert answer.meta["cached_tokens"] == expected
            await wait_held(client, lambda pages: pages >= PAGES)


@pytest.mark.sglang
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
async def test_sglang_computes_only_what_is_new(tmp_path: Path) -> None:
    with running_system(tmp_path, "--ratio", "2:1", "--page-size", str(PAGE), start_timeout_s=600) as system:
        await follow_ups(system, None)
