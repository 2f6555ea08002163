"""What a gateway measures of pairs, and that least_cost goes by it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from opentelemetry.trace import INVALID_SPAN

from tandem.core.candidates import Candidate, Candidates
from tandem.core.ids import Incarnation, RequestId, Role, WorkerId, WorkerLife
from tandem.core.kv_index import NOTHING_HELD
from tandem.core.pair_book import MAX_LIVES, PairBook
from tandem.core.pair_cost import DEFAULT_BYTES_PER_S, DEFAULT_TOKENS_PER_S, PrefillSide, Prompt
from tandem.core.policies import PolicyName
from tandem.gateway.routing.pair_costs import prompt_of, running, saw_status
from tandem.gateway.routing.room_runs import Journey
from tandem.gateway.routing.router import Router, RouterSettings
from tandem.v1 import session_pb2
from tests.support.bootstrap.workers import LAYOUT, worker
from tests.support.gateway.doubles import NotingWorker, NotingWorkers, finish, sequence, untraced

P0, P1, D0 = (WorkerLife(WorkerId(name), Incarnation(1)) for name in ("p0", "p1", "d0"))


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Room:
    """An attempt whose KV arrives when a test says so."""

    hooks: list[Callable[[], None]] = field(default_factory=list)

    def on_kv_arrived(self, hook: Callable[[], None]) -> None:
        self.hooks.append(hook)

    def arrive(self) -> None:
        for hook in self.hooks:
            hook()


def prompt(tokens: int) -> Prompt:
    return Prompt(tokens, 16, 1000.0)


def those(*lives: WorkerLife) -> Candidates:
    return Candidates.of(Candidate(life, 0, 1) for life in lives)


def side_of(costs: PairBook, life: WorkerLife) -> PrefillSide:
    found = costs.cheapest(prompt(1), those(life), those(D0), NOTHING_HELD, lambda *_: True, 0)
    assert found is not None
    return found[0]


def status(*traffic: tuple[str, str, int, int], free: int = 7, evictable: int = 2) -> session_pb2.WorkerStatus:
    return session_pb2.WorkerStatus(
        pools=[session_pb2.PoolStatus(name="kv", total=10, free=free, evictable=evictable)],
        traffic=[
            session_pb2.PeerTraffic(peer=peer, provider=provider, bytes=size, moving_us=us)
            for peer, provider, size, us in traffic
        ],
    )


def test_prompts_queue_until_their_kv_arrives_or_they_fail() -> None:
    costs, room, other = PairBook(Clock()), Room(), Room()
    with running(costs, room, prompt(300), (P0, D0), (100, 0)):
        with running(costs, other, prompt(50), (P0, D0), (50, 0)):
            assert side_of(costs, P0).queued_tokens == 201, "one token at least is computed"
        assert side_of(costs, P0).queued_tokens == 200
        room.arrive()
        assert side_of(costs, P0).queued_tokens == 0
    assert side_of(costs, P0).queued_tokens == 0


def test_pace_is_what_a_worker_computes_while_it_has_something_to_compute() -> None:
    clock = Clock()
    costs, first, second = PairBook(clock), Room(), Room()
    assert side_of(costs, P0).tokens_per_s == DEFAULT_TOKENS_PER_S
    with (
        running(costs, first, prompt(1000), (P0, D0), (0, 1000)),
        running(costs, second, prompt(1000), (P0, D0), (0, 1000)),
    ):
        clock.now += 2
        first.arrive()
        clock.now += 2
        second.arrive()
    assert side_of(costs, P0).tokens_per_s == pytest.approx(500), "the second waited for the first"
    assert side_of(costs, P1).tokens_per_s == pytest.approx(500), "one that is new is thought to be as the others"


def test_a_prompt_that_is_mostly_cached_does_not_make_its_worker_slow() -> None:
    clock = Clock()
    costs, room = PairBook(clock), Room()
    with running(costs, room, prompt(3000), (P0, D0), (2990, 0)):
        clock.now += 1
        room.arrive()
    assert side_of(costs, P0).tokens_per_s == DEFAULT_TOKENS_PER_S


def test_a_slow_link_is_not_taken_for_slow_prefill() -> None:
    clock = Clock()
    costs, room = PairBook(clock), Room()
    saw_status(costs, worker("p0", incarnation=1), status(("d0", "tcp", 1_000_000, 1_000_000)))
    with running(costs, room, prompt(3000), (P0, D0), (0, 0)):
        clock.now += 4  # three seconds of it to move 3 MB
        room.arrive()
    assert side_of(costs, P0).tokens_per_s == pytest.approx(3000)


def test_speed_is_bytes_over_the_time_that_they_took_since_the_last_word() -> None:
    costs, info = PairBook(Clock()), worker("p0", incarnation=1)
    assert costs.speed(P0, D0) == DEFAULT_BYTES_PER_S
    saw_status(costs, info, status(("d0", "tcp", 10_000, 1000), ("d0", "cma", 10_000, 1000)))
    assert costs.speed(P0, D0) == pytest.approx(1e7)
    for place in range(60):
        saw_status(costs, info, status(("d0", "tcp", 20_000 + 10_000 * place, 2000 + 10_000 * place)))
    assert costs.speed(P0, D0) == pytest.approx(1e6, rel=0.05)
    assert costs.speed(P1, D0) == DEFAULT_BYTES_PER_S


def test_a_worker_of_a_former_release_tells_no_times_and_is_thought_fast() -> None:
    costs = PairBook(Clock())
    saw_status(costs, worker("p0", incarnation=1), status(("d0", "tcp", 10_000, 0)))
    assert costs.speed(P0, D0) == DEFAULT_BYTES_PER_S


def test_pages_that_are_free_or_could_be_count() -> None:
    costs = PairBook(Clock())
    saw_status(costs, worker("d0", Role.DECODE, incarnation=1), status())
    found = costs.cheapest(prompt(1), those(P0), those(D0), NOTHING_HELD, lambda *_: True, 0)
    assert found is not None
    assert found[1].free_pages == 9


def test_among_many_the_one_is_found_that_is_free_and_holds_the_beginning() -> None:
    costs = PairBook(Clock())
    prefills, decodes = (
        those(*(WorkerLife(WorkerId(f"{role}{number:03}"), Incarnation(1)) for number in range(200))) for role in "pd"
    )
    rooms = [
        running(costs, Room(), prompt(500), (life, D0), (0, 0)) for life in prefills.lives if life != prefills.lives[77]
    ]
    decodes.note_rooms(decodes.lives[5], 0)
    for life in decodes.lives[:5] + decodes.lives[6:]:
        decodes.note_rooms(life, 1)
    with contextlib.ExitStack() as stack:
        for room in rooms:
            stack.enter_context(room)
        for bits in range(0, 2**32, 2**32 // 50):
            found = costs.cheapest(prompt(1000), prefills, decodes, NOTHING_HELD, lambda *_: True, bits)
            assert found is not None
            assert (found[0].life, found[1].life) == (prefills.lives[77], decodes.lives[5])


def test_what_was_known_of_the_one_that_was_asked_for_the_longest_ago_is_forgotten() -> None:
    costs, room = PairBook(Clock()), Room()
    others = [WorkerLife(WorkerId(f"other{number}"), Incarnation(1)) for number in range(MAX_LIVES - 1)]

    def queued() -> set[float]:
        return {side_of(costs, life).queued_tokens for life in others}

    with running(costs, room, prompt(300), (P0, D0), (0, 0)):
        assert queued() == {0}, "the last one has the place of the first"
        room.arrive()
    assert queued() == {0}, "what comes of a room from before changes nothing"


def test_bytes_of_a_token_are_those_of_the_kv_pool() -> None:
    assert prompt_of(5, LAYOUT) == Prompt(5, 16, 512.0)


async def routed(costs: PairBook, prefill: PolicyName, decode: PolicyName, tokens: int) -> tuple[str, str]:
    """The pair of one prompt, among two of each; p1 and d1 have a room each already."""
    workers = NotingWorkers(
        [NotingWorker("p0", Role.PREFILL), NotingWorker("p1", Role.PREFILL)],
        [NotingWorker("d0", Role.DECODE), NotingWorker("d1", Role.DECODE)],
    )
    for busy in (workers.prefills[1], workers.decodes[1]):
        busy.legs[1] = None  # type: ignore[assignment]
    router = Router(
        workers,
        RouterSettings(1, 0),
        {Role.PREFILL: prefill, Role.DECODE: decode, Role.UNIFIED: PolicyName.LEAST_LOAD},
        untraced(),
        costs=costs,
    )
    one = Journey(RequestId("req"), INVALID_SPAN, asyncio.get_running_loop().time() + 60)
    task = asyncio.create_task(router.run(replace(sequence(), input_ids=(5,) * tokens), one, lambda _: True))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    [ours] = [leg for leg in workers.prefills if leg.submits]
    [theirs] = [leg for leg in workers.decodes if leg.submits]
    theirs.bring(finish(theirs.submits[0].room))
    await task
    return ours.life.worker_id, theirs.life.worker_id


def slow_to_d0() -> PairBook:
    costs = PairBook(Clock())
    for name in ("p0", "p1"):
        saw_status(costs, worker(name, incarnation=1), status(("d0", "tcp", 1_000_000, 1_000_000)))
    return costs


async def test_pairs_are_chosen_by_cost_where_both_roles_ask_for_it() -> None:
    both = (PolicyName.LEAST_COST, PolicyName.LEAST_COST)
    assert (await routed(PairBook(Clock()), *both, 4000))[1] == "d0", "it is the less crowded"
    assert (await routed(slow_to_d0(), *both, 4000))[1] == "d1"
    assert (await routed(slow_to_d0(), *both, 4))[1] == "d0", "little has to move"


async def test_for_one_role_alone_it_is_the_least_load() -> None:
    for policies in ((PolicyName.LEAST_COST, PolicyName.LEAST_LOAD), (PolicyName.LEAST_LOAD, PolicyName.LEAST_COST)):
        assert await routed(slow_to_d0(), *policies, 4000) == ("p0", "d0")
