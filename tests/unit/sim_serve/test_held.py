"""What the simulated gateway knows of caches is what they hold, page by page, and policies that go by it find more."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.cli.bench_serve.choices import WorkloadName
from tandem.cli.bench_serve.workload import SHAPES, synthetic
from tandem.cli.sim_serve.cache import PrefixCache, page_runs, stretches
from tandem.cli.sim_serve.cluster import Cluster, ClusterPlan
from tandem.cli.sim_serve.costs import WorkerShape
from tandem.cli.sim_serve.held import HeldPages
from tandem.cli.sim_serve.jobs import Ask, Pieces
from tandem.cli.sim_serve.report import ask_of
from tandem.core.ids import Incarnation, Role, WorkerId, WorkerLife
from tandem.core.kv_index import MAX_PAGES_MATCHED
from tandem.core.policies import PolicyName

WORKERS = [WorkerLife(WorkerId(name), Incarnation(1)) for name in ("a", "b")]
PROMPTS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=5).map(tuple)


@given(st.lists(st.tuples(st.integers(0, 1), PROMPTS), max_size=30), st.integers(1, 200), st.sampled_from([1, 7, 16]))
def test_the_gateway_knows_what_each_cache_holds_in_whole_pages(
    kept: list[tuple[int, Pieces]], tokens: int, page: int
) -> None:
    held = HeldPages(page)
    caches = [PrefixCache(tokens, page, held.follow(life)) for life in WORKERS]
    for place, pieces in kept:
        caches[place].keep(pieces)
        match = held.match(pieces)
        for life, cache in zip(WORKERS, caches, strict=True):
            assert match.pages_of(life) == cache.held(pieces) // page
    held.forget(WORKERS[0])
    for _, pieces in kept:
        assert held.match(pieces).pages_of(WORKERS[0]) == 0
        assert held.match(pieces).pages_of(WORKERS[1]) == caches[1].held(pieces) // page


def test_equal_pages_have_equal_names_and_others_do_not() -> None:
    def pages(*pieces: tuple[int, int]) -> list[int]:
        return [page for run in page_runs(pieces, 16) for page in run]

    whole = pages((1, 20), (2, 30))
    assert len(whole) == len(set(whole)) == 3
    assert pages((1, 20), (2, 40))[:3] == whole, "a longer piece goes on from a shorter one"
    assert pages((1, 20), (3, 30))[:1] == whole[:1], "only the first page ends before they part"
    assert not set(pages((1, 20), (3, 30))[1:]) & set(whole)
    assert not set(pages((1, 19), (2, 30))[1:]) & set(whole), "the same piece elsewhere is another"
    assert not pages((1, 15))
    assert sum(map(len, page_runs(((1, 100_000),), 16))) == MAX_PAGES_MATCHED
    (stretch,) = stretches(((1, 50),), 16)
    assert list(stretch) == [stretch[0], stretch[1], stretch[-1]]


def chats(count: int, rate_per_s: float) -> list[Ask]:
    """Conversations with a common system prompt."""
    questions = islice(synthetic(SHAPES[WorkloadName.CHAT], 1, np.random.default_rng(1)), count)
    return [ask_of((number / rate_per_s, question)) for number, question in enumerate(questions)]


def test_conversations_meet_their_beginning_where_the_policy_goes_by_it() -> None:
    """Caches of four workers hold 32 conversations between them, and none holds all."""
    asks, shape = chats(700, 40), WorkerShape(cache_tokens=12_000)

    def found(policy: PolicyName, unified: bool = False) -> float:
        sizes = (0, 0, 4) if unified else (4, 4, 0)
        run = Cluster(ClusterPlan(*sizes, shape=shape, policies=dict.fromkeys(Role, policy))).run(asks)
        return run.totals.cached_tokens / run.totals.prompt_tokens

    plain = found(PolicyName.LEAST_LOAD)
    for policy in (PolicyName.CACHE_AWARE, PolicyName.CONSISTENT_HASH):
        assert found(policy) > plain + 0.1, policy
        assert found(policy, unified=True) > plain + 0.1, policy
    assert found(PolicyName.LEAST_COST) > plain + 0.1


def test_turns_of_a_conversation_name_one_session_and_prompts_that_begin_alike_one_beginning() -> None:
    asks = chats(400, 1)
    assert 32 <= len({ask.session for ask in asks}) < 150
    assert len({ask.prefix for ask in asks}) == 1, "the system prompt is longer than a beginning"
    alone = islice(synthetic(SHAPES[WorkloadName.RANDOM], 1, np.random.default_rng(1)), 20)
    assert {ask_of((0.0, question)).session for question in alone} == {b""}


@pytest.mark.parametrize("policy", [PolicyName.CACHE_AWARE, PolicyName.LEAST_COST])
def test_a_worker_that_leaves_is_not_chosen_for_what_it_held(policy: PolicyName) -> None:
    cluster = Cluster(ClusterPlan(2, 2, shape=WorkerShape(cache_tokens=10_000), policies=dict.fromkeys(Role, policy)))
    crew, ask = cluster._prefills, Ask(0.0, ((1, 1000),), 2)
    first = crew.workers[0]
    first._cache.keep(ask.pieces)
    assert crew.most_held(ask) == 1000 // 16 * 16
    assert crew.held(ask).pages_of(first.rooms.life) == 1000 // 16
    crew.drain(first.rooms.life.worker_id, cluster._agenda, lambda: None)
    assert crew.most_held(ask) == 0
    first._cache.keep(((2, 500),))
    assert crew.held(Ask(0.0, ((2, 500),), 2)).most == 0
