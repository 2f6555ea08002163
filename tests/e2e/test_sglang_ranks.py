"""One scheduler rank of a worker with two: what happens to it happens to its worker, and answers go on elsewhere."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tandem.core.cluster import ClusterView
from tandem.core.ids import WorkerId
from tests.support.faults.cells import Fault
from tests.support.faults.strikes import PREPARED, Strike
from tests.support.system.asking import body, events, generate, generate_all, metric, prompt_of
from tests.support.system.system import System, is_idle, running_system

pytestmark = [pytest.mark.sglang, pytest.mark.slow, pytest.mark.timeout(900)]

BOUND_S = 3.0
"""Longest silence in a stream."""
RESTART_S = 200


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A prefill worker and two decode workers, each with two ranks."""
    with running_system(tmp_path_factory.mktemp("ranks"), "--ratio", "1:2", "--tp", "2", start_timeout_s=300) as system:
        yield system


PROMPT = prompt_of(50, seed=5)
NEW_TOKENS = 16
LONG_PROMPTS = [prompt_of(20, seed) for seed in range(2)]
LONG = 400
RESUMED = "tandem_gateway_resumed_total"


def rank_process(system: System, worker: str) -> psutil.Process:
    """A worker's second rank, as its newest life has logged it."""
    log = (system.folder / "logs" / f"{worker}.log").read_text()
    return psutil.Process(int(re.findall(r"rank dp0\.pp0\.tp1 attached \(pid (\d+)\)", log)[-1]))


async def streams_when_struck(system: System, strike: Strike) -> tuple[list[list[int]], float]:
    """Answers of a stream on each decode worker, one of which has a rank struck; and their longest silence, in s."""
    begun = [asyncio.Event() for _ in LONG_PROMPTS]

    async def follow(client: httpx.AsyncClient, number: int) -> tuple[list[int], float]:
        tokens: list[int] = []
        said, silence = time.monotonic(), 0.0
        async for event in events(client, "/generate", body(LONG_PROMPTS[number], LONG, ignore_eos=True)):
            assert "error" not in event, event
            if len(event["output_ids"]) > 1:  # the first is prefill's
                begun[number].set()
                silence = max(silence, event["at"] - said)
            tokens, said = event["output_ids"], event["at"]
        return tokens, silence

    async with system.client() as client:
        following = [asyncio.create_task(follow(client, number)) for number in range(len(LONG_PROMPTS))]
        async with asyncio.timeout(60):
            for one in begun:
                await one.wait()
        striking = asyncio.create_task(strike())
        answers = await asyncio.gather(*following)
        await striking
        return [tokens for tokens, _ in answers], max(silence for _, silence in answers)


async def check(system: System, fault: Fault, *, leaves: bool) -> None:
    """Strikes the second rank of a decode worker in the midst of answers, which go on; sees the worker back, and right.

    leaves: whether the worker leaves the cluster meanwhile.
    """
    life = (await system.members())["decode-0"].info.worker.incarnation
    async with system.client() as client:
        wanted = await generate(client, PROMPT, NEW_TOKENS, ignore_eos=True)
        long_ones = [one.tokens for one in await generate_all(client, LONG_PROMPTS, LONG, at_once=2, ignore_eos=True)]
        gone_on = await metric(client, RESUMED)
        rank = rank_process(system, "decode-0")
        with PREPARED[fault](system, [rank.pid]) as strike:
            striking = asyncio.create_task(streams_when_struck(system, strike))
            if leaves:
                # A watcher's view is empty until it hears from bootstrap.
                await system.wait_view(lambda view: bool(view.workers) and not _life(view), RESTART_S)
                meanwhile = await generate(client, PROMPT, NEW_TOKENS, ignore_eos=True)
                assert meanwhile.tokens == wanted.tokens, "by the other worker"
            answers, silence_s = await striking
        assert answers == long_ones, "token for token, wherever they went on"
        assert await metric(client, RESUMED) == gone_on + leaves
        assert silence_s < BOUND_S
        least = life + fault.ends_process
        view = await system.wait_view(lambda view: _life(view) >= least, RESTART_S)
        assert fault.ends_process or _life(view) == life, "the same life"
        before = await system.wait_idle()
        assert all(is_idle(status) for status in before.values()), before
        # Workers take turns.
        afterwards = [await generate(client, PROMPT, NEW_TOKENS, ignore_eos=True) for _ in range(4)]
        assert {tuple(answer.tokens) for answer in afterwards} == {tuple(wanted.tokens)}
        assert (await system.wait_idle())["decode-0"].submitted > before["decode-0"].submitted


def _life(view: ClusterView) -> int:
    info = view.workers.get(WorkerId("decode-0"))
    return 0 if info is None else info.life.incarnation


@pytest.mark.long
async def test_a_rank_that_is_cut_off_goes_on_with_what_it_has(doubled: System) -> None:
    await check(doubled, Fault.CUT, leaves=False)


@pytest.mark.long
async def test_a_rank_that_stands_still_takes_its_worker_out_and_brings_it_back(doubled: System) -> None:
    await check(doubled, Fault.STOP, leaves=True)


@pytest.mark.long
@pytest.mark.parametrize("fault", [Fault.KILL, Fault.TERM], ids=str)
async def test_a_rank_that_ends_ends_its_worker_which_comes_back(doubled: System, fault: Fault) -> None:
    await check(doubled, fault, leaves=True)
