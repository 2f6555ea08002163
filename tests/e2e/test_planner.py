"""`tandem planner` beside a system with the mock engine: load comes, the advice appears, the command runs once."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from tandem.cli.switching import switch_here
from tandem.cli.top import watch
from tandem.core.cluster import ClusterView
from tandem.core.errors import TandemError
from tandem.core.ids import Role, WorkerId
from tandem.core.planner.advice import KEEP_QUIET
from tandem.rpc.credentials import PLAIN
from tandem.rpc.run import ANNOUNCEMENT
from tests.support.gateway.process import gateway_process
from tests.support.planner_process import QUICK, line_with, planner_process
from tests.support.system.asking import Answer, generate, prompt_of
from tests.support.system.system import System, environment, running_system

pytestmark = pytest.mark.long

PATIENCE = {"TANDEM_PLANNER_PATIENCE_S": "2"}
HOOK = "sh -c 'echo hook $PLANNER_CHANGE $PLANNER_GIVES $PLANNER_GETS $PLANNER_WORKER $PLANNER_PREFILL $PLANNER_DECODE'"
CLIENTS = 12


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One prefill worker, which takes a second per prompt, and two decode workers."""
    slow = ("--engine-arg", "prefill_us_per_token=1000")
    with running_system(tmp_path_factory.mktemp("planner"), "--engine", "mock", "--ratio", "1:2", *slow) as running:
        yield running


def planner(
    system: System, *options: str, **env: str
) -> contextlib.AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """env: besides, or instead of, what is quick."""
    command = (sys.executable, "-m", "tandem.cli", "planner", "--admin", system.state.admin, *options)
    return planner_process(*command, env=environment(**{**QUICK, **PATIENCE, **env}))


@contextlib.asynccontextmanager
async def prompts_come(system: System) -> AsyncIterator[asyncio.Semaphore]:
    """More prompts than one worker computes. The semaphore rises with each answer."""
    answers = asyncio.Semaphore(0)
    async with system.client() as client:
        asking = [asyncio.create_task(_ask(client, number, answers)) for number in range(CLIENTS)]
        try:
            yield answers
            ended = [task for task in asking if task.done()]
            assert not ended, f"some got no answer: {ended}"
        finally:
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)


async def _ask(client: httpx.AsyncClient, number: int, answers: asyncio.Semaphore) -> None:
    prompt = prompt_of(1000, seed=number)
    while True:
        await generate(client, prompt, 2)
        answers.release()


async def test_the_advice_appears_in_the_log_and_in_the_metrics(system: System) -> None:
    async with prompts_come(system), planner(system) as process:
        address = (await line_with(process, f"{ANNOUNCEMENT} metrics")).split()[-1]
        said = await line_with(process, "move a worker")
        assert "decode to prefill, to have 1 decode, 2 prefill: prefill is at" in said
        async with httpx.AsyncClient(trust_env=False) as client:
            told = (await client.get(f"http://{address}/metrics")).text
    assert 'tandem_planner_wanted_workers{role="prefill"} 2.0' in told
    assert 'tandem_planner_wanted_workers{role="decode"} 1.0' in told
    assert 'tandem_planner_workers{role="decode"} 2.0' in told


async def test_the_command_runs_once_for_a_worker_that_is_drained(system: System) -> None:
    """Nobody comes in place of the worker that is drained; yet nothing more is done, as decode keeps its last one."""
    async with prompts_come(system) as answers, planner(system, "--apply", HOOK) as process:
        assert await line_with(process, "hook move") == "hook move decode prefill decode-1 2 1"
        await system.wait_view(
            lambda view: {name for name, info in view.workers.items() if info.draining} == {WorkerId("decode-1")}
        )
        async with asyncio.timeout(120):
            for _ in range(2 * CLIENTS):
                await answers.acquire()
        process.terminate()
        assert process.stdout is not None
        async with asyncio.timeout(60):
            rest = (await process.stdout.read()).decode()
    assert "hook" not in rest
    assert "a worker:" not in rest


async def three_prefill(system: System) -> list[str]:
    """Names of the prefill workers, once there are three of them."""

    def found(view: ClusterView) -> list[str]:
        return sorted(info.worker_id for info in view.workers.values() if info.role is Role.PREFILL)

    return found(await system.wait_view(lambda view: len(found(view)) == 3 and len(view.workers) == 4, 240))


@pytest.mark.parametrize("restart", [True, False])
async def test_a_worker_of_a_running_system_changes_its_role_and_no_answer_is_lost(
    tmp_path: Path, restart: bool
) -> None:
    """Decode keeps its last worker, so there are two changes, one after the other, while requests go on."""
    slow = ("--engine-arg", "prefill_us_per_token=500")
    how = "--restart" if restart else ""
    switch = f"sh -c '{sys.executable} -m tandem.cli switch {how} $PLANNER_WORKER $PLANNER_GETS'"
    with running_system(tmp_path, "--engine", "mock", "--ratio", "1:3", *slow) as system:
        here = {"TANDEM_CLI_STATE_FILE": str(tmp_path / "state.json"), "TANDEM_PLANNER_PATIENCE_S": "120"}
        async with prompts_come(system) as answers, planner(system, "--apply", switch, **here):
            names = await three_prefill(system)
            assert names == (
                [f"prefill-{each}" for each in range(3)] if restart else ["decode-1", "decode-2", "prefill-0"]
            )
            async with asyncio.timeout(240):
                for _ in range(4 * CLIENTS):
                    await answers.acquire()
                while not all([(await system.statuses())[name].rooms_succeeded for name in names]):
                    await answers.acquire()
        assert not any(member.info.draining for member in (await system.members()).values())
        rows = {row.name: row.kind for row in system.state.processes}
        assert rows == {
            **dict.fromkeys(names, "prefill"),
            "decode-0": "decode",
            "bootstrap": "bootstrap",
            "gateway": "gateway",
        }


async def test_who_would_be_missed_is_not_switched(system: System) -> None:
    """As one command, and what it refuses."""
    state_file = system.folder / "state.json"
    for worker_id, role, said in (
        ("prefill-0", Role.DECODE, "nobody would serve without prefill-0"),
        ("decode-0", Role.DECODE, "is a decode worker already"),
        ("decode-9", Role.PREFILL, "there is no worker 'decode-9'"),
    ):
        with pytest.raises(TandemError, match=said):
            await switch_here(state_file, PLAIN, worker_id, role, 60)
    assert {row.name for row in system.state.processes} >= {"prefill-0", "decode-0", "decode-1"}


WAITING = 20
"""Requests at each of two gateways."""
BY_COSTS = {
    "TANDEM_PLANNER_CLEAR_S": "10",
    "TANDEM_PLANNER_HIGH": "1.5",
    "TANDEM_PLANNER_FULL": "1.6",
    "TANDEM_PLANNER_LOG_LEVEL": "DEBUG",
}
"""20 that wait take 20 / 10 s x 0.5 s = 1 worker, and those of both gateways 2."""
COSTS = '{"schema": "tandem.costs/1", "engine": {"prefill_us_per_token": 500}}'


@contextlib.asynccontextmanager
async def two_gateways(folder: Path) -> AsyncIterator[tuple[System, tuple[str, str], tuple[httpx.AsyncClient, ...]]]:
    """Of one system in which a prompt takes minutes, and that serves one request per gateway at a time; where each
    gateway answers operators, and a client of each."""
    variable = "TANDEM_GATEWAY_MAX_CONCURRENT"
    slow = ("--engine-arg", "prefill_us_per_token=300000", "--drain-s", "0", "--env", f"gateway:{variable}=1")
    with running_system(folder, "--engine", "mock", "--ratio", "1:2", *slow) as system:
        async with (
            gateway_process(system.state.bootstrap, **{variable: "1"}) as (other, http),
            httpx.AsyncClient(base_url=f"http://{http}", timeout=600, trust_env=False) as there,
            system.client(600) as here,
        ):
            assert other.stdout is not None
            admin = (await other.stdout.readline()).decode().split()[-1]
            yield system, (system.state.admin, admin), (here, there)


async def test_what_waits_at_two_gateways_takes_a_worker_more_and_at_one_of_them_it_would_not(tmp_path: Path) -> None:
    """What waits stays as it is, as nothing ends. A planner that watches one gateway sees half of it."""
    (tmp_path / "costs.json").write_text(COSTS)
    costs = ("--costs", str(tmp_path / "costs.json"))
    async with two_gateways(tmp_path) as (system, admins, clients), asks_wait(clients, admins) as ask:
        async with planner(system, *costs, **BY_COSTS) as process:
            await line_with(process, KEEP_QUIET.reason)
            ask(1)
            looks = [await next_line(process) for _ in range(40)]
            assert not [line for line in looks if "a worker:" in line]
        async with planner(system, "--admin", admins[1], *costs, **BY_COSTS) as process:
            await line_with(process, KEEP_QUIET.reason)
            ask(1)
            said = await line_with(process, "move a worker")
    assert "decode to prefill, to have 1 decode, 2 prefill" in said


async def next_line(process: asyncio.subprocess.Process) -> str:
    """One that the planner logs, at each look at least."""
    return await line_with(process, "")


@contextlib.asynccontextmanager
async def asks_wait(
    clients: Sequence[httpx.AsyncClient], admins: Sequence[str]
) -> AsyncIterator[Callable[[int], None]]:
    """As many requests wait at each gateway as are asked of it, but for one. The callable asks more of each."""
    asking: list[asyncio.Task[Answer]] = []

    def ask(count: int) -> None:
        for client in clients:
            asking.extend(asyncio.create_task(generate(client, prompt_of(1000), 2)) for _ in range(count))

    ask(WAITING + 1)
    try:
        for admin in admins:
            messages = watch(admin, PLAIN, 200)
            async with asyncio.timeout(120), contextlib.aclosing(messages):
                async for message in messages:
                    if message.waiting == WAITING:
                        break
        yield ask
        assert not [task for task in asking if task.done()]
    finally:
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
