"""One scheduler rank of a worker with two: what happens to it happens to its worker, and nobody waits for it."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tandem.core.cluster import ClusterView
from tandem.core.ids import WorkerId
from tests.support.faults.cells import Fault
from tests.support.faults.strikes import PREPARED, Strike
from tests.support.system.asking import body, generate, last_event
from tests.support.system.system import System, is_idle, running_system

pytestmark = [pytest.mark.sglang, pytest.mark.slow, pytest.mark.timeout(420)]

BOUND_S = 3.0
"""From the fault to what the client hears of it."""
RESTART_S = 200


def prompt_of(length: int, seed: int) -> list[int]:
    """A random prompt of the tiny vocabulary."""
    dice = random.Random(seed)
    return [dice.randrange(3, 1000) for _ in range(length)]


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A prefill worker and two decode workers, each with two ranks."""
    with running_system(tmp_path_factory.mktemp("ranks"), "--ratio", "1:2", "--tp", "2", start_timeout_s=300) as system:
        yield system


PROMPT = prompt_of(50, seed=5)
NEW_TOKENS = 16


def rank_process(system: System, worker: str) -> psutil.Process:
    """A worker's second rank, as its newest life has logged it."""
    log = (system.folder / "logs" / f"{worker}.log").read_text()
    return psutil.Process(int(re.findall(r"rank dp0\.pp0\.tp1 attached \(pid (\d+)\)", log)[-1]))


async def streams_when_struck(system: System, strike: Strike) -> tuple[list[dict[str, Any]], float]:
    """Last events of a stream on each decode worker, of which one's rank is struck; and when that was."""
    async with system.client() as client:
        begun = [asyncio.Event() for _ in range(2)]
        asked = [body(prompt_of(20, seed), 600, ignore_eos=True) for seed in range(2)]
        streams = [asyncio.create_task(last_event(client, *one)) for one in zip(asked, begun, strict=True)]
        async with asyncio.timeout(60):
            for one in begun:
                await one.wait()
        struck = time.monotonic()
        striking = asyncio.create_task(strike())
        answers = await asyncio.gather(*streams)
        await striking
        return answers, struck


async def check(system: System, fault: Fault, *, failures: int) -> None:
    """Strikes the second rank of a decode worker in the midst of answers; sees the worker back, and right."""
    life = (await system.members())["decode-0"].info.worker.incarnation
    async with system.client() as client:
        wanted = await generate(client, PROMPT, NEW_TOKENS, ignore_eos=True)
        rank = rank_process(system, "decode-0")
        with PREPARED[fault](system, rank.pid) as strike:
            striking = asyncio.create_task(streams_when_struck(system, strike))
            if failures:
                # A watcher's view is empty until it hears from bootstrap.
                await system.wait_view(lambda view: bool(view.workers) and not _life(view), RESTART_S)
                meanwhile = await generate(client, PROMPT, NEW_TOKENS, ignore_eos=True)
                assert meanwhile.tokens == wanted.tokens, "by the other worker"
            answers, struck = await striking
        failed = [last for last in answers if "error" in last]
        assert [last["error"]["code"] for last in failed] == ["peer_lost"] * failures
        assert all(last["at"] - struck < BOUND_S for last in failed)
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
    await check(doubled, Fault.CUT, failures=0)


async def test_a_rank_that_stands_still_takes_its_worker_out_and_brings_it_back(doubled: System) -> None:
    await check(doubled, Fault.STOP, failures=1)


@pytest.mark.long
@pytest.mark.parametrize("fault", [Fault.KILL, Fault.TERM], ids=str)
async def test_a_rank_that_ends_ends_its_worker_which_comes_back(doubled: System, fault: Fault) -> None:
    await check(doubled, fault, failures=1)
