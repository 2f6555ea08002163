"""Workers of a running system take other roles, in the process that they are."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tandem.cli.switching import switch_here, switch_there
from tandem.core.cluster import ClusterView, WorkerInfo
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role, WorkerId
from tandem.rpc.credentials import PLAIN
from tests.support.system.asking import generate, prompt_of
from tests.support.system.system import System, running_system

CLIENTS = 6
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One prefill worker and two of decode."""
    with running_system(tmp_path_factory.mktemp("switch"), "--engine", "mock", "--ratio", "1:2") as running:
        yield running


async def roles(system: System) -> dict[str, str]:
    return {name: member.role for name, member in (await system.members()).items()}


async def switched(system: System, worker_id: str, role: Role, **how: bool) -> str:
    return await switch_here(system.folder / "state.json", PLAIN, worker_id, role, 60, **how)


async def by_gateway(system: System, worker_id: str, role: Role) -> str:
    return await switch_there(system.state.admin, PLAIN, worker_id, role, 60)


@contextlib.asynccontextmanager
async def requests_go_on(system: System) -> AsyncIterator[asyncio.Semaphore]:
    """A few clients ask all the time; each answer has to be the one that they got before. The semaphore rises with
    each.

    What the mock answers depends on where a prompt ends: an answer that had to go on elsewhere, as something that its
    worker said was not heard, ends otherwise."""
    answers = asyncio.Semaphore(0)

    async def ask(client: httpx.AsyncClient, number: int, until: asyncio.Event) -> None:
        prompt, first = prompt_of(200, seed=number), None
        while not until.is_set():
            answer = await generate(client, prompt, NEW_TOKENS)
            first = first or answer.tokens
            assert answer.tokens == first
            answers.release()

    until = asyncio.Event()
    async with system.client() as client, asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(ask(client, number, until))
        try:
            yield answers
        finally:
            until.set()


async def more(answers: asyncio.Semaphore) -> None:
    """As many answers as there are clients came from now on."""
    async with asyncio.timeout(60):
        while not answers.locked():
            await answers.acquire()
        for _ in range(CLIENTS):
            await answers.acquire()


async def seen(system: System, role: Role) -> WorkerInfo:
    """decode-1, once it is registered in a role."""

    def there(view: ClusterView) -> WorkerInfo | None:
        found = view.workers.get(WorkerId("decode-1"))
        return found if found is not None and found.role is role else None

    found = there(await system.wait_view(lambda view: there(view) is not None))
    assert found is not None
    return found


async def test_a_worker_takes_every_role_in_one_process_while_requests_go_on(system: System) -> None:
    pid, address = system.pid("decode-1"), system.state.row("decode-1").address
    lives = set()
    async with requests_go_on(system) as answers:
        for role in 8 * (Role.PREFILL, Role.UNIFIED, Role.DECODE) + (Role.PREFILL,):
            assert await switched(system, "decode-1", role) == "decode-1"
            info = await seen(system, role)
            lives.add(info.life)
            assert (info.address, info.draining) == (address, False)
            await more(answers)
            async with asyncio.timeout(60):
                while not (await system.statuses())["decode-1"].rooms_succeeded:
                    await more(answers)
    assert len(lives) == 25
    assert system.pid("decode-1") == pid
    assert await roles(system) == {"prefill-0": "prefill", "decode-0": "decode", "decode-1": "prefill"}
    assert {row.name: row.kind for row in system.state.processes}["decode-1"] == "prefill"
    await system.wait_idle()


async def test_it_comes_back_in_its_role_when_it_has_died(system: System) -> None:
    """After the test above it is a prefill worker."""
    if (await roles(system))["decode-1"] != "prefill":
        await switched(system, "decode-1", Role.PREFILL)
    life = (await seen(system, Role.PREFILL)).life
    system.kill("decode-1", signal.SIGKILL)
    await system.wait_view(
        lambda view: (
            (now := view.workers.get(life.worker_id)) is not None and now.life != life and now.role is Role.PREFILL
        )
    )
    assert await switched(system, "decode-1", Role.DECODE) == "decode-1"


async def test_a_gateways_workers_are_switched_without_their_state_file(system: System) -> None:
    was = (await roles(system))["decode-1"]
    other = Role.DECODE if was == "prefill" else Role.PREFILL
    assert await by_gateway(system, "decode-1", other) == "decode-1"
    assert (await roles(system))["decode-1"] == other.value
    assert await by_gateway(system, "decode-1", Role(was)) == "decode-1"
    with pytest.raises(TandemError, match="bootstrap is no worker"):
        await by_gateway(system, "bootstrap", Role.DECODE)


@pytest.mark.parametrize("by_up", [True, False])
async def test_who_would_be_missed_stays(system: System, by_up: bool) -> None:
    """By `tandem up`, and by the worker itself."""
    asked = switched if by_up else by_gateway
    with pytest.raises(TandemError, match="nobody would serve without prefill-0") as refused:
        await asked(system, "prefill-0", Role.DECODE)
    assert refused.value.reason is ErrorReason.INVALID_ARGUMENT
    with pytest.raises(TandemError, match="prefill-0 is a prefill worker already"):
        await asked(system, "prefill-0", Role.PREFILL)
    assert (await roles(system))["prefill-0"] == "prefill"
