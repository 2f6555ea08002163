"""Two rooms for one answer where the first says nothing for a while: who speaks first is heard, the other one ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from opentelemetry.trace import INVALID_SPAN

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RequestId, Role
from tandem.core.policies import PolicyName
from tandem.core.retry_budget import BudgetSettings
from tandem.gateway.routing.room_runs import Journey
from tandem.gateway.routing.router import Router, RouterSettings
from tandem.v1 import session_pb2
from tests.support.gateway.doubles import FirstOfAll, NotingWorker, NotingWorkers, finish, sequence, tokens, untraced

AT_ONCE, NEVER_IN_A_TEST = 1, 600_000
LOST = TandemError(ErrorReason.PEER_LOST, "gone")


@dataclass(slots=True)
class Hedged:
    """A streamed request whose router hedges."""

    workers: NotingWorkers
    task: asyncio.Task[None]
    got: list[session_pb2.Delta]
    hedges: list[bool]
    retries: list[ErrorReason]

    async def asked(self, number: int) -> int:
        """The room that a pair was sent."""
        if not self.workers.decodes[number].submits:
            await self.workers.decodes[number].next_submit()
        return self.workers.decodes[number].submits[0].room

    def told(self) -> list[int]:
        """Tokens that the client has."""
        return [token for delta in self.got for token in delta.token_ids]


@asynccontextmanager
async def hedged(after_ms: int, *, pairs: int = 2, burst: int = 100, early: bool = False) -> AsyncIterator[Hedged]:
    """Starts it."""
    workers = NotingWorkers(
        [NotingWorker(f"p{number}", Role.PREFILL) for number in range(pairs)],
        [NotingWorker(f"d{number}", Role.DECODE) for number in range(pairs)],
    )
    hedges: list[bool] = []
    retries: list[ErrorReason] = []
    got: list[session_pb2.Delta] = []
    settings = RouterSettings(retry_backoff_ms=0, hedge_after_ms=after_ms, retries=BudgetSettings(burst, 0))
    policies = dict.fromkeys(Role, PolicyName.RANDOM)
    router = Router(
        workers,
        settings,
        policies,
        untraced(),
        dice=FirstOfAll(),
        on_hedge=hedges.append,
        on_retry=retries.append,
    )
    journey = Journey(RequestId("req"), INVALID_SPAN, asyncio.get_running_loop().time() + 60)

    def deliver(delta: session_pb2.Delta | None) -> bool:
        assert delta is not None, "nothing that was told is void"
        got.append(delta)
        return True

    one = replace(sequence(), early_first_token=early)
    now = Hedged(workers, asyncio.create_task(router.run(one, journey, deliver)), got, hedges, retries)
    yield now
    now.task.cancel()
    await asyncio.wait({now.task})
    assert not any(worker.legs for worker in workers.prefills + workers.decodes), "every leg has ended"


@pytest.mark.parametrize("ahead", [0, 1])
async def test_who_speaks_first_is_heard_and_the_other_ends(ahead: int) -> None:
    async with hedged(AT_ONCE) as now:
        rooms = [await now.asked(0), await now.asked(1)]
        assert rooms[0] != rooms[1]
        decode, late = now.workers.decodes[ahead], now.workers.decodes[1 - ahead]
        decode.bring(tokens(rooms[ahead], 5))
        late.bring(tokens(rooms[1 - ahead], 6))
        decode.bring(tokens(rooms[ahead], 7))
        decode.bring(finish(rooms[ahead]))
        await now.task
        assert now.told() == [5, 7]
        assert late.cancelled[rooms[1 - ahead]].reason is ErrorReason.CANCELLED
        assert now.workers.prefills[1 - ahead].cancelled[rooms[1 - ahead]].reason is ErrorReason.CANCELLED
        assert (now.hedges, now.retries) == ([ahead == 1], [])


async def test_a_first_token_of_prefill_decides_too() -> None:
    async with hedged(AT_ONCE, early=True) as now:
        rooms = [await now.asked(0), await now.asked(1)]
        now.workers.prefills[1].bring(tokens(rooms[1], 5, text="a"))
        now.workers.decodes[0].bring(tokens(rooms[0], 6, text="b"))
        now.workers.decodes[1].bring(tokens(rooms[1], 5, 7, text="ac"))
        now.workers.decodes[1].bring(finish(rooms[1]))
        await now.task
        assert now.told() == [5, 7]


async def test_who_speaks_in_time_is_alone() -> None:
    async with hedged(NEVER_IN_A_TEST) as now:
        room = await now.asked(0)
        now.workers.decodes[0].bring(tokens(room, 5))
        now.workers.decodes[0].bring(finish(room))
        await now.task
        assert not now.workers.decodes[1].submits
        assert now.hedges == []


async def test_one_that_fails_unheard_leaves_the_other_to_it() -> None:
    async with hedged(AT_ONCE) as now:
        rooms = [await now.asked(0), await now.asked(1)]
        now.workers.decodes[0].lose(LOST)
        now.workers.decodes[1].bring(tokens(rooms[1], 5))
        now.workers.decodes[1].bring(finish(rooms[1]))
        await now.task
        assert (now.told(), now.retries) == ([5], [])


async def test_where_both_fail_unheard_another_attempt_follows() -> None:
    async with hedged(AT_ONCE, pairs=3) as now:
        await now.asked(0)
        await now.asked(1)
        for decode in now.workers.decodes[:2]:
            decode.lose(LOST)
        room = await now.asked(2)
        now.workers.decodes[2].bring(tokens(room, 5))
        now.workers.decodes[2].bring(finish(room))
        await now.task
        assert (now.told(), now.retries) == ([5], [ErrorReason.PEER_LOST])


async def test_an_answer_that_breaks_off_after_it_was_ahead_goes_on() -> None:
    async with hedged(AT_ONCE) as now:
        rooms = [await now.asked(0), await now.asked(1)]
        now.workers.decodes[1].bring(tokens(rooms[1], 65, text="A"))
        now.workers.decodes[1].lose(LOST)
        rest = await now.workers.decodes[0].next_submit()
        assert list(rest.input_ids) == [1, 2, 3, 65]
        now.workers.decodes[0].bring(tokens(rest.room, 66, text="B"))
        now.workers.decodes[0].bring(finish(rest.room))
        await now.task
        assert (now.told(), now.hedges) == ([65, 66], [True])


@pytest.mark.parametrize(("pairs", "burst"), [(1, 100), (2, 0)], ids=["no_other_workers", "no_budget"])
async def test_without_others_or_budget_the_first_is_waited_for(pairs: int, burst: int) -> None:
    async with hedged(AT_ONCE, pairs=pairs, burst=burst) as now:
        room = await now.asked(0)
        await asyncio.sleep(0.05)  # far beyond AT_ONCE
        now.workers.decodes[0].bring(tokens(room, 5))
        now.workers.decodes[0].bring(finish(room))
        await now.task
        assert [len(worker.submits) for worker in now.workers.decodes] == [1, 0][:pairs]
        assert (now.told(), now.hedges) == ([5], [])


async def test_a_client_that_goes_ends_both() -> None:
    async with hedged(AT_ONCE) as now:
        await now.asked(0)
        await now.asked(1)
        now.task.cancel()
        await asyncio.wait({now.task})
        for worker in now.workers.prefills + now.workers.decodes:
            assert [why.reason for why in worker.cancelled.values()] == [ErrorReason.CANCELLED]
