"""Unified workers in the router: which prompts they get, who takes over where workers lack, and their attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
from opentelemetry.trace import INVALID_SPAN

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import ALONE, PAIR, RequestId, Role
from tandem.core.kv_index import KvChange, KvIndex, KvMatch
from tandem.core.placement import teams_for
from tandem.core.policies import PolicyName
from tandem.core.prompt_pages import PromptPages
from tandem.gateway.routing.attempt import RoomPhase
from tandem.gateway.routing.room_runs import Journey
from tandem.gateway.routing.rooms import RoomBook
from tandem.gateway.routing.router import Router, RouterSettings
from tandem.v1 import common_pb2, session_pb2
from tests.support.gateway.doubles import (
    NotingWorker,
    NotingWorkers,
    finish,
    one_each,
    sequence,
    tokens,
    untraced,
)

LOST = TandemError(ErrorReason.PEER_LOST, "gone")
SHORT, LONG = (1, 2, 3), tuple(range(1, 12))
LIMIT = 8


class Answers:
    """What a client gets."""

    def __init__(self) -> None:
        self.deltas: list[session_pb2.Delta] = []

    def take(self, delta: session_pb2.Delta | None) -> bool:
        if delta is None:
            self.deltas.clear()
        else:
            self.deltas.append(delta)
        return True

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]


def unified_too(unified: int = 1, *, pairs: bool = True) -> NotingWorkers:
    """Unified workers, and a pair."""
    workers = one_each() if pairs else NotingWorkers()
    workers.unified = [NotingWorker(f"u{number}", Role.UNIFIED) for number in range(unified)]
    return workers


def router_of(workers: NotingWorkers, limit: int = LIMIT, **changes: Any) -> Router:
    """A router to which prompts of up to `limit` tokens are short."""
    settings = RouterSettings(3, retry_backoff_ms=0, retry_wait_ms=0, unified_max_prompt_tokens=limit)
    policies = dict.fromkeys(Role, PolicyName.ROUND_ROBIN)
    return Router(workers, settings, policies, untraced(), **changes)


def journey() -> Journey:
    return Journey(RequestId("req"), INVALID_SPAN, asyncio.get_running_loop().time() + 60)


async def settled(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Starts work and lets it come to its first wait."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def end(task: asyncio.Task[None], worker: NotingWorker) -> None:
    """The worker brings the end of its only room."""
    [room] = worker.legs
    worker.bring(tokens(room, 4, text="d"))
    worker.bring(finish(room))
    await task


@pytest.mark.parametrize(
    ("new", "short", "place", "wanted"),
    [
        (8, 8, True, (ALONE, PAIR)),
        (9, 8, True, (PAIR, ALONE)),
        (8, 8, False, (PAIR, ALONE)),
        (1, 0, True, (PAIR, ALONE)),
    ],
)
def test_short_prompts_go_where_there_is_a_place(new: int, short: int, place: bool, wanted: tuple[Any, ...]) -> None:
    assert teams_for(new, short, unified_has_place=place) == wanted


@pytest.mark.parametrize(("ids", "alone"), [(SHORT, True), (LONG, False)])
async def test_the_length_of_a_prompt_decides(ids: tuple[int, ...], alone: bool) -> None:
    workers, got = unified_too(), Answers()
    task = await settled(router_of(workers).run(sequence(ids), journey(), got.take))
    [worker] = workers.unified
    sent = [len(one.submits) for one in (worker, workers.prefills[0], workers.decodes[0])]
    assert sent == ([1, 0, 0] if alone else [0, 1, 1])
    await end(task, worker if alone else workers.decodes[0])
    assert got.tokens == [4]


class Held:
    """Holders, of whom one holds so many pages of every prompt."""

    def __init__(self, worker: NotingWorker, pages: int) -> None:
        self._worker = worker
        self._pages = pages

    def serve(self, policies: dict[Role, PolicyName]) -> None:
        """Any."""

    def match(self, pages: PromptPages) -> KvMatch:
        index, [run] = KvIndex(100), [tuple(chain.from_iterable(pages.runs()))]
        index.apply(self._worker.life, KvChange(1, cleared=True))
        index.apply(self._worker.life, KvChange(2, stored=run[: self._pages]))
        return index.match([run])


@pytest.mark.parametrize(("pages", "alone"), [(3, True), (2, False)])
async def test_what_a_unified_worker_holds_of_a_prompt_does_not_count(pages: int, alone: bool) -> None:
    workers = unified_too()
    [worker] = workers.unified
    size = worker.info.layout.page_size
    router = router_of(workers, limit=size, holders=Held(worker, pages))
    router.set_policy(PolicyName.CACHE_AWARE, Role.UNIFIED)
    task = await settled(router.run(sequence(tuple(range(4 * size))), journey(), lambda _: True))
    assert bool(worker.submits) is alone
    await end(task, worker if alone else workers.decodes[0])


async def test_a_unified_worker_is_sent_no_peer() -> None:
    workers = unified_too()
    task = await settled(router_of(workers).run(sequence(), journey(), lambda _: True))
    [submit] = workers.unified[0].submits
    assert not submit.HasField("peer")
    assert (len(submit.nonce), submit.request_id, list(submit.input_ids)) == (16, "req", list(SHORT))
    await end(task, workers.unified[0])


async def test_a_full_unified_worker_leaves_short_prompts_to_pairs() -> None:
    workers = unified_too()
    worker = workers.unified[0]
    worker.info = replace(worker.info, max_running=1)
    router = router_of(workers)
    first = await settled(router.run(sequence(), journey(), lambda _: True))
    second = await settled(router.run(sequence(), journey(), lambda _: True))
    assert [len(one.submits) for one in (worker, workers.decodes[0])] == [1, 1]
    await end(first, worker)
    await end(second, workers.decodes[0])


@pytest.mark.parametrize("lacking", ["prefills", "decodes"])
async def test_a_long_prompt_goes_to_a_unified_worker_where_a_pair_lacks_one(lacking: str) -> None:
    workers = unified_too()
    setattr(workers, lacking, [])
    task = await settled(router_of(workers).run(sequence(LONG), journey(), lambda _: True))
    await end(task, workers.unified[0])


async def test_a_short_prompt_goes_to_a_pair_where_no_unified_worker_is() -> None:
    workers = unified_too(0)
    task = await settled(router_of(workers).run(sequence(), journey(), lambda _: True))
    await end(task, workers.decodes[0])


async def test_without_workers_the_one_that_is_lacking_is_named() -> None:
    with pytest.raises(TandemError, match="no decode worker"):
        await router_of(unified_too(0, pairs=False)).run(sequence(), journey(), lambda _: True)


async def test_an_answer_that_a_unified_worker_began_goes_on_on_a_pair() -> None:
    workers, got, resumed = unified_too(), Answers(), []
    router = router_of(workers, on_resume=lambda: resumed.append(1))
    task = await settled(router.run(sequence((97, 98)), journey(), got.take))
    [worker] = workers.unified
    [first] = worker.submits
    worker.bring(tokens(first.room, 99, 100, text="cd"))
    worker.lose(LOST)
    second = await workers.decodes[0].next_submit()
    assert list(second.input_ids) == [97, 98, 99, 100]
    assert second.peer.worker_id == "p0"
    await end(task, workers.decodes[0])
    assert (got.tokens, resumed) == ([99, 100, 4], [1])


async def test_an_answer_that_a_pair_began_goes_on_on_a_unified_worker_where_no_other_pair_is() -> None:
    workers, got = unified_too(), Answers()
    task = await settled(router_of(workers).run(sequence(tuple(range(97, 108))), journey(), got.take))
    [first] = workers.decodes[0].submits
    workers.decodes[0].bring(tokens(first.room, 108, 109, text="lm"))
    workers.decodes[0].lose(LOST)
    second = await workers.unified[0].next_submit()
    assert list(second.input_ids) == list(range(97, 110))
    await end(task, workers.unified[0])
    assert got.tokens == [108, 109, 4]


async def test_a_first_token_that_prefill_said_is_not_said_again() -> None:
    workers, got = unified_too(), Answers()
    one = replace(sequence(tuple(range(97, 108))), early_first_token=True)
    one.sampling.stop.append("never said")  # it can't go on, so the other attempt begins anew
    task = await settled(router_of(workers).run(one, journey(), got.take))
    [first] = workers.prefills[0].submits
    workers.prefills[0].bring(tokens(first.room, 108, text="l"))
    workers.prefills[0].lose(LOST)
    second = await workers.unified[0].next_submit()
    workers.unified[0].bring(tokens(second.room, 108, text="l"))
    assert got.tokens == [108]
    await end(task, workers.unified[0])
    assert got.tokens == [108, 4]


@pytest.mark.parametrize(
    ("failure", "blamed"),
    [(ErrorReason.ENGINE_FAILED, True), (ErrorReason.POOL_EXHAUSTED, True), (ErrorReason.TRANSFER_FAILED, False)],
)
async def test_its_failure_is_its_own(failure: ErrorReason, blamed: bool) -> None:
    workers, rooms = unified_too(2, pairs=False), RoomBook()
    task = await settled(router_of(workers, rooms=rooms).run(sequence(), journey(), lambda _: True))
    [submit] = workers.unified[0].submits
    attempt = rooms.entries()[0].running
    failed = common_pb2.Failure(reason=failure.value, message="why")
    workers.unified[0].bring(finish(submit.room, session_pb2.FINISH_KIND_FAILED, failure=failed))
    await workers.unified[1].next_submit()
    assert attempt.end.blamed is (Role.UNIFIED if blamed else None)
    await end(task, workers.unified[1])


async def test_a_refusal_is_its_own() -> None:
    workers = unified_too(2, pairs=False)
    workers.unified[0].refuses = LOST
    task = await settled(router_of(workers).run(sequence(), journey(), lambda _: True))
    await workers.unified[1].next_submit()
    await end(task, workers.unified[1])


async def test_cancelling_the_request_cancels_the_room() -> None:
    workers, rooms = unified_too(), RoomBook()
    task = await settled(router_of(workers, rooms=rooms).run(sequence(), journey(), lambda _: True))
    [submit] = workers.unified[0].submits
    assert rooms.entries()[0].running.phase is RoomPhase.SUBMITTED
    workers.unified[0].bring(tokens(submit.room, 4, text="d"))
    assert rooms.entries()[0].running.phase is RoomPhase.DECODING
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert workers.unified[0].cancelled[submit.room].reason is ErrorReason.CANCELLED


async def test_an_operator_ends_the_room() -> None:
    workers, rooms = unified_too(), RoomBook()
    task = await settled(router_of(workers, rooms=rooms).run(sequence(), journey(), lambda _: True))
    [submit] = workers.unified[0].submits
    entry = rooms.abort(submit.room)
    assert [entry.facts.worker_of(role) for role in PAIR] == ["u0", "u0"]
    with pytest.raises(TandemError) as caught:
        await task
    assert caught.value.reason is ErrorReason.CANCELLED
    assert submit.room in workers.unified[0].cancelled


async def test_a_client_that_reads_too_slowly_is_given_up() -> None:
    workers = unified_too(2)
    task = await settled(router_of(workers).run(sequence(), journey(), lambda _: False))
    [submit] = workers.unified[0].submits
    workers.unified[0].bring(tokens(submit.room, 4, text="d"))
    with pytest.raises(TandemError) as caught:
        await task
    assert caught.value.reason is ErrorReason.OVERLOADED
    assert workers.unified[1].submits == []
