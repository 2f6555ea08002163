"""Choice of workers, and other attempts while the client has seen nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RequestId, Role
from tandem.core.policies import PolicyName
from tandem.gateway.router import Dice, Journey, Router, RouterSettings
from tandem.v1 import session_pb2
from tests.support.gateway.doubles import NotingWorker, NotingWorkers, finish, one_each, router_of, sequence, tokens

LOST = TandemError(ErrorReason.PEER_LOST, "gone")


def journey(seconds: float = 60) -> Journey:
    """A request with time left."""
    return Journey(RequestId("req"), "", asyncio.get_running_loop().time() + seconds)


def two_each() -> NotingWorkers:
    """Two workers of each role."""
    return NotingWorkers(
        [NotingWorker(name, Role.PREFILL) for name in ("p0", "p1")],
        [NotingWorker(name, Role.DECODE) for name in ("d0", "d1")],
    )


async def settled(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Starts work and lets it come to its first wait."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def test_a_lost_worker_before_the_first_token_is_not_seen_by_the_client() -> None:
    workers, got = two_each(), []

    def deliver(delta: session_pb2.Delta) -> bool:
        got.append(delta)
        return True

    task = await settled(router_of(workers).run(sequence(), journey(), deliver))
    [first] = workers.decodes[0].submits
    workers.decodes[0].lose(LOST)
    second = await workers.decodes[1].next_submit()
    assert second.room != first.room
    assert second.nonce != first.nonce
    assert len(second.nonce) == 16
    assert second.request_id == first.request_id == "req"
    assert workers.prefills[1].submits[0].room == second.room, "the other prefill worker is preferred too"
    workers.decodes[1].bring(tokens(second.room, 4, text="x"))
    workers.decodes[1].bring(finish(second.room))
    await task
    assert [list(delta.token_ids) for delta in got] == [[4], []]


async def test_after_the_first_token_there_is_no_other_attempt() -> None:
    workers = two_each()
    task = await settled(router_of(workers).run(sequence(), journey(), lambda _: True))
    [submit] = workers.decodes[0].submits
    workers.decodes[0].bring(tokens(submit.room, 1))
    workers.decodes[0].lose(LOST)
    with pytest.raises(TandemError) as failure:
        await task
    assert failure.value is LOST
    assert not workers.decodes[1].submits


async def test_another_attempt_goes_on_from_the_first_token_that_prefill_said() -> None:
    workers, got = two_each(), []

    def deliver(delta: session_pb2.Delta) -> bool:
        got.append(delta)
        return True

    task = await settled(router_of(workers).run(replace(sequence(), early_first_token=True), journey(), deliver))
    [first] = workers.prefills[0].submits
    assert first.early_first_token
    workers.prefills[0].bring(tokens(first.room, 4, text="x"))
    workers.decodes[0].lose(LOST)
    second = await workers.decodes[1].next_submit()
    workers.prefills[1].bring(tokens(second.room, 4, text="x"))
    workers.decodes[1].bring(tokens(second.room, 4, text="x"))
    workers.decodes[1].bring(tokens(second.room, 5, text="y"))
    workers.decodes[1].bring(finish(second.room))
    await task
    assert [(list(delta.token_ids), delta.text) for delta in got] == [([4], "x"), ([5], "y"), ([], "")]


async def test_an_attempt_whose_dice_fall_otherwise_ends_with_the_first_cause() -> None:
    workers = two_each()
    task = await settled(router_of(workers).run(sequence(), journey(), lambda _: True))
    [first] = workers.prefills[0].submits
    workers.prefills[0].bring(tokens(first.room, 4, text="x"))
    workers.decodes[0].lose(LOST)
    second = await workers.decodes[1].next_submit()
    workers.decodes[1].bring(tokens(second.room, 5, text="y"))
    with pytest.raises(TandemError) as failure:
        await task
    assert failure.value is LOST, "not that the second attempt said another token"
    assert sum(len(worker.submits) for worker in workers.decodes) == 2, "no third one"


class LoadedDice(Dice):
    """Always the first worker."""

    def bits(self, count: int) -> int:
        """Zero."""
        return 0


async def test_another_attempt_prefers_workers_that_have_not_failed() -> None:
    workers = two_each()
    workers.decodes[0].refuses = LOST
    router = Router(workers, RouterSettings(3, 0), dict.fromkeys(Role, PolicyName.RANDOM), dice=LoadedDice())
    task = asyncio.create_task(router.run(sequence(), journey(), lambda _: True))
    submit = await workers.decodes[1].next_submit()
    assert [one.room for one in workers.prefills[1].submits] == [submit.room]
    workers.decodes[1].bring(finish(submit.room))
    await task


async def test_attempts_are_counted() -> None:
    workers = one_each()
    workers.decodes[0].refuses = LOST
    tried = []
    router = router_of(workers, max_attempts=3)
    router._on_retry = tried.append
    with pytest.raises(TandemError) as failure:
        await router.run(sequence(), journey(), lambda _: True)
    assert failure.value is LOST
    assert tried == [ErrorReason.PEER_LOST] * 2


async def test_another_attempt_waits_for_workers_to_come_back() -> None:
    workers = two_each()
    task = await settled(router_of(workers).run(sequence(), journey(), lambda _: True))
    [first] = workers.decodes[0].submits
    lost, workers.decodes = workers.decodes, []
    lost[0].lose(LOST)
    workers.changed.set()  # of no help
    await asyncio.sleep(0)
    workers.decodes = lost
    workers.changed.set()
    second = await lost[1].next_submit()
    assert second.room != first.room
    lost[1].bring(finish(second.room))
    await task


async def test_another_attempt_does_not_wait_for_long_and_the_first_does_not_wait() -> None:
    workers = one_each()
    router = Router(workers, RouterSettings(3, 0, retry_wait_ms=50), dict.fromkeys(Role, PolicyName.RANDOM))
    task = await settled(router.run(sequence(), journey(), lambda _: True))
    [lost], workers.decodes = workers.decodes, []
    lost.lose(LOST)
    for attempt in (task, asyncio.create_task(router.run(sequence(), journey(), lambda _: True))):
        with pytest.raises(TandemError) as failure:
            await asyncio.wait_for(attempt, 5)
        assert failure.value.reason is ErrorReason.NO_WORKER


async def test_what_another_worker_cannot_do_better_is_not_tried_again() -> None:
    workers = two_each()
    workers.prefills[0].refuses = TandemError(ErrorReason.INVALID_ARGUMENT, "bad grammar")
    with pytest.raises(TandemError, match="bad grammar"):
        await router_of(workers).run(sequence(), journey(), lambda _: True)
    assert not workers.prefills[1].submits


async def test_the_deadline_ends_both_legs() -> None:
    workers = one_each()
    with pytest.raises(TandemError) as failure:
        await router_of(workers).run(sequence(), journey(seconds=0), lambda _: True)
    assert failure.value.reason is ErrorReason.DEADLINE_EXCEEDED
    assert list(workers.prefills[0].cancelled) == list(workers.decodes[0].cancelled)
    assert len(workers.decodes[0].cancelled) == len(workers.decodes[0].submits) == 1


async def test_no_worker_of_one_role_is_said() -> None:
    workers = NotingWorkers(decodes=[NotingWorker("d0", Role.DECODE)])
    with pytest.raises(TandemError, match="no prefill worker"):
        await router_of(workers).run(sequence(), journey(), lambda _: True)


async def test_a_pair_whose_layouts_differ_is_never_chosen() -> None:
    workers = two_each()
    odd = replace(workers.prefills[0].info.layout, page_size=1)
    workers.prefills[0].info = replace(workers.prefills[0].info, layout=odd)
    tasks = [await settled(router_of(workers).run(sequence(), journey(), lambda _: True)) for _ in range(4)]
    assert not workers.prefills[0].submits
    assert len(workers.prefills[1].submits) == 4
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_every_worker_gets_its_turn_and_the_policy_can_be_swapped() -> None:
    workers = two_each()
    router = router_of(workers)
    tasks = [await settled(router.run(sequence(), journey(), lambda _: True)) for _ in range(4)]
    assert [len(worker.submits) for worker in workers.decodes + workers.prefills] == [2, 2, 2, 2]
    assert router.set_policy(PolicyName.LEAST_LOAD) is PolicyName.ROUND_ROBIN
    workers.decodes[1].lose(LOST)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
