"""Choice of workers, other attempts while the client has seen nothing, and answers that go on elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.trace import INVALID_SPAN

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RequestId, Role
from tandem.core.policies import PolicyName
from tandem.core.retry_budget import BudgetSettings, RetryBudget
from tandem.gateway.calls import Sequence
from tandem.gateway.routing.room_runs import Journey
from tandem.gateway.routing.router import Router, RouterSettings
from tandem.v1 import common_pb2, session_pb2
from tests.support.gateway.doubles import (
    FirstOfAll,
    NotingWorker,
    NotingWorkers,
    finish,
    one_each,
    router_of,
    sequence,
    tokens,
    untraced,
)

LOST = TandemError(ErrorReason.PEER_LOST, "gone")


def journey(seconds: float = 60) -> Journey:
    """A request with time left."""
    return Journey(RequestId("req"), INVALID_SPAN, asyncio.get_running_loop().time() + seconds)


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


async def test_an_answer_goes_on_where_a_worker_was_lost() -> None:
    workers, got, resumed = two_each(), [], []

    def deliver(delta: session_pb2.Delta) -> bool:
        got.append(delta)
        return True

    router = router_of(workers)
    router._on_resume = lambda: resumed.append(1)
    one = sequence(ids=(97, 98))
    one.sampling.min_new_tokens = 2
    task = await settled(router.run(replace(one, early_first_token=True), journey(), deliver))
    [first] = workers.decodes[0].submits
    workers.decodes[0].bring(tokens(first.room, 99, 100, 101, text="cde"))
    workers.decodes[0].lose(LOST)
    second = await workers.decodes[1].next_submit()
    assert list(second.input_ids) == [97, 98, 99, 100, 101]
    assert (second.sampling.max_new_tokens, second.sampling.min_new_tokens) == (5, 0)
    assert second.early_first_token
    workers.prefills[1].bring(tokens(second.room, 102, text="f"))
    workers.decodes[1].bring(tokens(second.room, 102, text="f"))
    workers.decodes[1].bring(tokens(second.room, 103, text="g"))
    workers.decodes[1].bring(finish(second.room, prompt_tokens=5, completion_tokens=2, cached_tokens=4))
    await task
    assert [(list(delta.token_ids), delta.text) for delta in got] == [
        ([99, 100, 101], "cde"),
        ([102], "f"),
        ([103], "g"),
        ([], ""),
    ]
    last = got[-1].finish
    assert (last.prompt_tokens, last.completion_tokens, last.cached_tokens) == (2, 5, 2)
    assert resumed == [1]
    assert (one.sampling.max_new_tokens, one.sampling.min_new_tokens) == (8, 2), "the sequence's own is not changed"


async def test_an_answer_goes_on_from_the_token_that_prefill_said() -> None:
    workers, got = two_each(), []

    def deliver(delta: session_pb2.Delta) -> bool:
        got.append(delta)
        return True

    task = await settled(router_of(workers).run(replace(sequence(), early_first_token=True), journey(), deliver))
    [first] = workers.prefills[0].submits
    workers.prefills[0].bring(tokens(first.room, 65, text="A"))
    workers.prefills[0].lose(LOST)
    second = await workers.decodes[1].next_submit()
    assert list(second.input_ids) == [1, 2, 3, 65]
    assert workers.prefills[1].submits[0].room == second.room, "the one that was lost is not asked again"
    workers.decodes[1].bring(tokens(second.room, 66, text="B"))
    workers.decodes[1].bring(finish(second.room))
    await task
    assert [delta.text for delta in got] == ["A", "B", ""], "whatever the dice say"


async def test_an_answer_goes_on_as_often_as_there_are_attempts() -> None:
    workers = two_each()
    task = await settled(router_of(workers).run(sequence(), journey(), lambda _: True))
    for number in range(3):
        decode = workers.decodes[number % 2]
        submit = await decode.next_submit()
        assert len(submit.input_ids) == 3 + number
        decode.bring(tokens(submit.room, 65, text="A"))
        decode.lose(LOST)
    with pytest.raises(TandemError) as failure:
        await task
    assert failure.value is LOST


@pytest.mark.parametrize(
    "sampling",
    [
        {"stop": ["z"]},
        {"regex": "a+"},
        {"json_schema": "{}"},
        {"ebnf": "root ::= x"},
        {"frequency_penalty": 0.5},
        {"presence_penalty": -0.5},
        {"repetition_penalty": 1.1},
        {"max_new_tokens": 1},
    ],
    ids=str,
)
async def test_an_answer_that_looks_back_does_not_go_on(sampling: dict[str, Any]) -> None:
    workers, one = two_each(), sequence()
    one.sampling.MergeFrom(session_pb2.Sampling(**sampling))
    await assert_ends_with_its_worker(workers, one, text="A")


async def test_an_answer_that_nobody_has_seen_begins_anew_instead() -> None:
    workers, got = two_each(), []

    def deliver(delta: session_pb2.Delta | None) -> bool:
        got.append(delta)
        return True

    one = replace(sequence(), streamed=False)
    one.sampling.regex = "a+"
    task = await settled(router_of(workers).run(one, journey(), deliver))
    [first] = workers.decodes[0].submits
    workers.decodes[0].bring(tokens(first.room, 65, text="A"))
    workers.decodes[0].lose(LOST)
    second = await workers.decodes[1].next_submit()
    assert list(second.input_ids) == [1, 2, 3]
    assert second.sampling == first.sampling
    workers.decodes[1].bring(tokens(second.room, 66, text="B"))
    workers.decodes[1].bring(finish(second.room))
    await task
    assert [delta and delta.text for delta in got] == ["A", None, "B", ""]
    assert got[-1].finish.completion_tokens == 1


async def test_an_answer_whose_text_lags_behind_does_not_go_on() -> None:
    await assert_ends_with_its_worker(two_each(), sequence(), text="")


async def test_an_answer_that_waits_for_the_prompts_log_probabilities_does_not_go_on() -> None:
    one = sequence(logprobs=session_pb2.LogprobOptions(prompt=True))
    await assert_ends_with_its_worker(two_each(), one, text="A")


async def assert_ends_with_its_worker(workers: NotingWorkers, one: Sequence, text: str) -> None:
    task = await settled(router_of(workers).run(one, journey(), lambda _: True))
    [submit] = workers.decodes[0].submits
    workers.decodes[0].bring(tokens(submit.room, 65, text=text))
    workers.decodes[0].lose(LOST)
    with pytest.raises(TandemError) as failure:
        await task
    assert failure.value is LOST
    assert not workers.decodes[1].submits


async def test_a_client_that_is_too_slow_gets_no_other_attempt() -> None:
    workers = two_each()
    task = await settled(router_of(workers).run(sequence(), journey(), lambda _: False))
    [submit] = workers.decodes[0].submits
    workers.decodes[0].bring(tokens(submit.room, 65, text="A"))
    with pytest.raises(TandemError) as failure:
        await task
    assert failure.value.reason is ErrorReason.OVERLOADED
    assert not workers.decodes[1].submits


async def test_another_attempt_begins_with_the_first_token_that_prefill_said() -> None:
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


async def test_another_attempt_prefers_workers_that_have_not_failed() -> None:
    workers = two_each()
    workers.decodes[0].refuses = LOST
    policies = dict.fromkeys(Role, PolicyName.RANDOM)
    router = Router(workers, RouterSettings(3, 0), policies, untraced(), dice=FirstOfAll())
    task = asyncio.create_task(router.run(sequence(), journey(), lambda _: True))
    submit = await workers.decodes[1].next_submit()
    assert [one.room for one in workers.prefills[0].submits] == [submit.room], "prefill was not to blame"
    workers.decodes[1].bring(finish(submit.room))
    await task


@pytest.mark.parametrize(
    ("reason", "by_peer", "second"),
    [
        (ErrorReason.ENGINE_FAILED, False, ("p0", "d1")),
        (ErrorReason.ENGINE_FAILED, True, ("p1", "d0")),
        (ErrorReason.LINK_LOST, False, ("p1", "d1")),
    ],
)
async def test_another_attempt_avoids_who_failed_and_both_where_that_is_not_known(
    reason: ErrorReason, by_peer: bool, second: tuple[str, str]
) -> None:
    workers = two_each()
    policies = dict.fromkeys(Role, PolicyName.RANDOM)
    router = Router(workers, RouterSettings(3, 0), policies, untraced(), dice=FirstOfAll())
    task = await settled(router.run(sequence(), journey(), lambda _: True))
    [first] = workers.decodes[0].submits
    failure = common_pb2.Failure(reason=reason.value, message="decode says so", by_peer=by_peer)
    everyone = workers.prefills + workers.decodes
    for worker in everyone:
        worker.submits.clear()
    workers.decodes[0].submitted.clear()
    workers.decodes[0].bring(finish(first.room, session_pb2.FINISH_KIND_FAILED, failure=failure))
    await (workers.decodes[0] if second[1] == "d0" else workers.decodes[1]).next_submit()
    await asyncio.sleep(0)
    assert tuple(worker.life.worker_id for worker in everyone if worker.submits) == second
    task.cancel()
    await asyncio.wait({task})


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


async def test_the_first_attempt_waits_for_workers_that_are_known() -> None:
    workers = two_each()
    workers.expected = True
    decodes, workers.decodes = workers.decodes, []
    task = await settled(router_of(workers).run(sequence(), journey(), lambda _: True))
    workers.decodes = decodes
    workers.changed.set()
    submit = await decodes[0].next_submit()
    decodes[0].bring(finish(submit.room))
    await task


async def test_models_that_take_turns_use_all_of_their_workers() -> None:
    workers = two_each()
    router = router_of(workers)
    for number in range(4):
        one = replace(sequence(), model="ab"[number % 2])
        task = await settled(router.run(one, journey(), lambda _: True))
        task.cancel()
        await asyncio.wait({task})
    models = [[submit.model for submit in decode.submits] for decode in workers.decodes]
    assert models == [["a", "b"], ["a", "b"]]


async def test_another_attempt_does_not_wait_for_long_and_the_first_does_not_wait() -> None:
    workers = one_each()
    policies = dict.fromkeys(Role, PolicyName.RANDOM)
    router = Router(workers, RouterSettings(3, 0, retry_wait_ms=50), policies, untraced())
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


async def test_what_is_past_its_deadline_is_sent_to_nobody() -> None:
    workers = one_each()
    with pytest.raises(TandemError) as failure:
        await router_of(workers).run(sequence(), journey(seconds=0), lambda _: True)
    assert failure.value.reason is ErrorReason.DEADLINE_EXCEEDED
    assert workers.decodes[0].submits == workers.prefills[0].submits == []


async def test_the_deadline_ends_both_legs() -> None:
    workers = one_each()
    with pytest.raises(TandemError) as failure:
        await router_of(workers).run(sequence(), journey(seconds=0.5), lambda _: True)
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
    router.set_policy(PolicyName.LEAST_LOAD)
    assert set(router.policies.values()) == {PolicyName.LEAST_LOAD}
    workers.decodes[1].lose(LOST)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_no_more_attempts_are_repeated_than_the_budget_holds() -> None:
    workers, spent = one_each(), []
    router = router_of(workers)
    router._budget = RetryBudget(BudgetSettings(burst=1, ratio=0), time.monotonic())
    router._on_no_budget = lambda: spent.append(1)
    workers.decodes[0].refuses = LOST
    for retried in (True, False):
        before = len(spent)
        with pytest.raises(TandemError) as failed:
            await router.run(sequence(), journey(), lambda _: True)
        assert failed.value.reason is ErrorReason.PEER_LOST
        assert (workers.prefills[0].submits, router._choosers[Role.DECODE].counts.total()) == ([], 2 if retried else 3)
        assert len(spent) == before + 1
