"""One scheduler rank of a worker with two: what happens to it happens to its worker, and nobody waits for it."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import psutil
import pytest

from tandem.core.ids import WorkerId
from tests.support.faults.strikes import STOPPED_S
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


async def stop_for_a_while(rank: psutil.Process) -> None:
    """SIGSTOP, and SIGCONT later."""
    rank.suspend()
    try:
        await asyncio.sleep(STOPPED_S)  # the length of the fault
    finally:
        rank.resume()


async def end(rank: psutil.Process) -> None:
    """SIGKILL."""
    rank.kill()


async def streams_when_struck(system: System, strike: Coroutine[Any, Any, None]) -> tuple[list[dict[str, Any]], float]:
    """Last events of a stream on each decode worker, of which one loses a rank; and when that was."""
    async with system.client() as client:
        begun = [asyncio.Event() for _ in range(2)]
        asked = [body(prompt_of(20, seed), 600, ignore_eos=True) for seed in range(2)]
        streams = [asyncio.create_task(last_event(client, *one)) for one in zip(asked, begun, strict=True)]
        async with asyncio.timeout(60):
            for one in begun:
                await one.wait()
        struck = time.monotonic()
        striking = asyncio.create_task(strike)
        answers = await asyncio.gather(*streams)
        await striking
        return answers, struck


async def test_a_stopped_rank_takes_its_worker_out_and_brings_it_back(doubled: System) -> None:
    life = (await doubled.members())["decode-0"].info.worker.incarnation
    async with doubled.client() as client:
        wanted = await generate(client, PROMPT, NEW_TOKENS, ignore_eos=True)
        striking = asyncio.create_task(
            streams_when_struck(doubled, stop_for_a_while(rank_process(doubled, "decode-0")))
        )
        await doubled.wait_view(lambda view: "decode-0" not in view.workers)
        meanwhile = await generate(client, PROMPT, NEW_TOKENS, ignore_eos=True)
        assert meanwhile.tokens == wanted.tokens, "by the other worker"
        answers, struck = await striking
        [failed] = [last for last in answers if "error" in last]
        assert failed["error"]["code"] == "peer_lost"
        assert failed["at"] - struck < BOUND_S
        view = await doubled.wait_view(lambda view: "decode-0" in view.workers)
        assert view.workers[WorkerId("decode-0")].life.incarnation == life, "the same life"
        before = await doubled.wait_idle()
        assert all(is_idle(status) for status in before.values()), before
        # Workers take turns.
        afterwards = [await generate(client, PROMPT, NEW_TOKENS, ignore_eos=True) for _ in range(4)]
        assert {tuple(answer.tokens) for answer in afterwards} == {tuple(wanted.tokens)}
        assert (await doubled.wait_idle())["decode-0"].submitted > before["decode-0"].submitted


@pytest.mark.long
async def test_a_killed_rank_ends_its_worker_which_comes_back(doubled: System) -> None:
    """Last in its module's system: it leaves a restarted worker."""
    life = (await doubled.members())["decode-0"].info.worker.incarnation
    answers, struck = await streams_when_struck(doubled, end(rank_process(doubled, "decode-0")))
    [failed] = [last for last in answers if "error" in last]
    assert failed["at"] - struck < BOUND_S
    await doubled.wait_view(
        lambda view: "decode-0" in view.workers and view.workers[WorkerId("decode-0")].life.incarnation > life,
        RESTART_S,
    )
    statuses = await doubled.wait_idle()
    assert all(is_idle(status) for status in statuses.values()), statuses
