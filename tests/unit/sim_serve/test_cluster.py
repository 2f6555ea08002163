"""The simulated cluster against what queueing theory and plain sums say, and what must hold of any run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.cli.sim_serve.cluster import Cluster, ClusterPlan, Run
from tandem.cli.sim_serve.costs import EngineCosts, GatewayCosts, LinkCosts, WorkerShape
from tandem.cli.sim_serve.jobs import Ask
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role
from tandem.core.policies import PolicyName

COSTS = EngineCosts(prefill_us_per_token=10, step_us=1000, step_us_per_sequence=0)
NO_LINK = LinkCosts(gbytes_per_s=1e9, us_per_chunk=0)


def poisson(count: int, rate_per_s: float, prompt: int, new: int, seed: int = 1) -> Iterator[Ask]:
    """Prompts of one length that share nothing."""
    dice, at_s = random.Random(seed), 0.0
    for number in range(count):
        at_s += dice.expovariate(rate_per_s)
        yield Ask(at_s, ((number, prompt),), new)


def at_once(*lengths: tuple[int, int]) -> list[Ask]:
    """Requests of (prompt, new) tokens at time 0."""
    return [Ask(0.0, ((number, prompt),), new) for number, (prompt, new) in enumerate(lengths)]


def test_the_wait_for_prefill_is_that_of_a_queue_with_constant_service() -> None:
    """M/D/1: the mean wait is load * service / (2 * (1 - load))."""
    service_s, load = 0.01, 0.7
    plan = ClusterPlan(costs=COSTS, link=NO_LINK, shape=WorkerShape(kv_tokens=1 << 40, chunk_tokens=1000))
    run = Cluster(plan).run(poisson(40_000, load / service_s, 1000, 1))
    expected = service_s + load * service_s / (2 * (1 - load))
    assert np.mean(run.ttft_s) == pytest.approx(expected, rel=0.03)
    assert run.busy["prefill"] == pytest.approx(load, rel=0.02)


def test_a_step_costs_what_its_batch_costs() -> None:
    costs = EngineCosts(prefill_us_per_token=0, step_us=1000, step_us_per_sequence=100, step_ns_per_token=1000)
    run = Cluster(ClusterPlan(costs=costs, link=NO_LINK)).run(at_once((10, 4)))
    assert run.e2e_s[0] == pytest.approx(sum(1.1e-3 + 1e-6 * context for context in (11, 12, 13)))
    assert run.gaps.count == 3


def test_who_comes_in_the_middle_of_a_step_waits_for_its_end() -> None:
    asks = [Ask(0.0, ((1, 1),), 6), Ask(0.0025, ((2, 1),), 2)]
    costs = EngineCosts(prefill_us_per_token=0, step_us=1000, step_us_per_sequence=0)
    run = Cluster(ClusterPlan(costs=costs, link=NO_LINK)).run(asks)
    assert list(run.e2e_s) == pytest.approx([0.0015, 0.005])
    assert run.longest_gap_s[0] == pytest.approx(0.0015), "half a step more than its own"


def test_prefill_stalls_nobody_but_in_a_unified_engine() -> None:
    asks = [Ask(0.0, ((1, 1),), 50), Ask(0.0105, ((2, 2000),), 2)]
    apart = Cluster(ClusterPlan(costs=COSTS, link=NO_LINK)).run(asks)
    together = Cluster(ClusterPlan(0, 0, 1, COSTS)).run(asks)
    assert max(apart.longest_gap_s) == pytest.approx(0.001, abs=0.001)
    assert max(together.longest_gap_s) == pytest.approx(0.021, abs=1e-6)
    assert together.gaps.quantile_s(1) == pytest.approx(0.021, rel=0.01)


@pytest.mark.parametrize(("most", "first_tokens"), [(0, [0.01, 0.05, 0.05]), (1, [0.01, 0.03, 0.05])])
def test_prompts_are_computed_together_if_the_engine_does_so(most: int, first_tokens: list[float]) -> None:
    asks = [Ask(0.0, ((1, 1000),), 1), Ask(0.001, ((2, 2000),), 1), Ask(0.001, ((3, 2000),), 1)]
    shape = WorkerShape(batch_prompts=most)
    run = Cluster(ClusterPlan(costs=COSTS, link=NO_LINK, shape=shape)).run(asks)
    assert [at + ttft for at, ttft in zip(run.at_s, run.ttft_s, strict=True)] == pytest.approx(first_tokens)


def test_what_the_gateway_adds_keeps_no_worker_busy() -> None:
    plan = ClusterPlan(costs=COSTS, link=NO_LINK, shape=WorkerShape(batch_prompts=1))
    without = Cluster(plan).run(at_once((1000, 2), (1000, 2)))
    later = Cluster(replace(plan, gateway=GatewayCosts(5000))).run(at_once((1000, 2), (1000, 2)))
    assert [one - other for one, other in zip(later.e2e_s, without.e2e_s, strict=True)] == pytest.approx([0.005] * 2)
    assert later.ttft_s[1] == pytest.approx(0.005 + 2 * 0.01)


def test_chunks_are_pushed_while_the_next_are_computed_and_a_slow_link_is_waited_for() -> None:
    shape = WorkerShape(chunk_tokens=1000, kv_bytes_per_token=1_000_000)
    ask = at_once((4000, 2))
    fast, slow = (
        Cluster(ClusterPlan(costs=COSTS, link=LinkCosts(rate, us_per_chunk=0), shape=shape)).run(ask)
        for rate in (1000, 10)
    )
    assert fast.longest_gap_s[0] == pytest.approx(0.001 + 0.001), "the last chunk only, then a step"
    assert slow.longest_gap_s[0] == pytest.approx(0.01 + 0.4 - 0.04 + 0.001), "all four, from the end of the first one"


def test_a_worker_that_is_full_is_waited_for_and_what_never_fits_is_refused() -> None:
    shape = WorkerShape(kv_tokens=1000)
    run = Cluster(ClusterPlan(costs=COSTS, link=NO_LINK, shape=shape)).run(at_once((500, 101), (500, 101), (950, 51)))
    assert run.refused == {"too_long": 1}
    assert sorted(run.ttft_s) == pytest.approx([0.005, 0.005 + 0.1 + 0.005])


def test_a_prefix_that_prefill_has_is_not_computed_again_but_is_pushed() -> None:
    turns = [Ask(10.0 * n, tuple((key, 1000) for key in range(n + 1)), 2) for n in range(3)]
    shape = WorkerShape(cache_tokens=10_000, kv_bytes_per_token=1000, page_tokens=8)
    run = Cluster(ClusterPlan(costs=COSTS, link=LinkCosts(0.001, us_per_chunk=0), shape=shape)).run(turns)
    assert list(run.cached_tokens) == [0, 1000, 2000]
    assert list(run.ttft_s) == pytest.approx([0.01] * 3)
    assert list(run.longest_gap_s) == pytest.approx([1.001, 2.001, 3.001])


def test_least_load_keeps_the_tail_shorter_than_dice_do() -> None:
    def tail(policy: PolicyName) -> float:
        plan = ClusterPlan(4, 4, costs=COSTS, link=NO_LINK, policies=dict.fromkeys(Role, policy))
        return float(np.percentile(Cluster(plan).run(poisson(20_000, 280, 1000, 8)).ttft_s, 99))

    assert tail(PolicyName.LEAST_LOAD) < 0.7 * tail(PolicyName.RANDOM)


@pytest.mark.parametrize("sizes", [(1, 0, 0), (1, 0, 1), (0, 0, 0)])
def test_nobody_decodes_without_workers(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(TandemError) as refused:
        Cluster(ClusterPlan(*sizes))
    assert refused.value.reason is ErrorReason.INVALID_ARGUMENT


def test_beside_pairs_short_prompts_need_no_link_and_long_ones_stop_no_answer() -> None:
    """A prompt of 100 tokens takes 1 ms and its steps 1 ms each; one of 4000 40 ms, and as long on the link."""
    link = LinkCosts(gbytes_per_s=0.1, us_per_chunk=0)
    shape = WorkerShape(kv_bytes_per_token=1000, max_running=2)
    plan = ClusterPlan(1, 1, 1, COSTS, link, shape, unified_max_prompt_tokens=100)
    lengths = [(100, 40), (4000, 2), (101, 2)]
    run = Cluster(plan).run(Ask(0.01 * n, ((n, prompt),), new) for n, (prompt, new) in enumerate(lengths))
    gaps = dict(zip(run.prompt_tokens, run.longest_gap_s, strict=True))
    assert gaps[100] == pytest.approx(0.001), "nothing was moved, and no prompt came between"
    assert gaps[4000] == pytest.approx(0.04 + 0.001)
    assert gaps[101] > 0.001, "longer than short: over the link"


def test_where_unified_workers_have_no_place_short_prompts_go_to_pairs_and_none_is_late() -> None:
    shape = WorkerShape(kv_bytes_per_token=1000, max_running=2)
    plan = ClusterPlan(1, 1, 1, COSTS, LinkCosts(0.1, us_per_chunk=0), shape, unified_max_prompt_tokens=100)
    run = Cluster(plan).run(Ask(0.005 * n, ((n, 100),), 200) for n in range(3))
    assert [round(gap, 4) for gap in sorted(run.longest_gap_s)] == [0.001, 0.002, 0.002]
    assert set(run.busy) == {"prefill", "decode", "unified"}


def test_by_cost_a_prompt_does_not_wait_behind_a_long_one() -> None:
    """Rooms do not tell how much waits, tokens do: 200 ms for the first prompt."""
    lengths = [20_000, 3000, *[400] * 6]

    def longest_wait_s(policy: PolicyName) -> float:
        plan = ClusterPlan(2, 2, costs=COSTS, link=NO_LINK, policies=dict.fromkeys(Role, policy))
        run = Cluster(plan).run(Ask(0.001 * n, ((n, tokens),), 2) for n, tokens in enumerate(lengths))
        return max(ttft for ttft, tokens in zip(run.ttft_s, run.prompt_tokens, strict=True) if tokens == 400)

    assert longest_wait_s(PolicyName.LEAST_COST) < 0.06
    assert longest_wait_s(PolicyName.LEAST_LOAD) > 0.15


LENGTHS = st.lists(st.tuples(st.floats(0, 0.3), st.integers(1, 400), st.integers(1, 40)), max_size=40)


def played(plan: ClusterPlan, lengths: list[tuple[float, int, int]]) -> tuple[Cluster, Run]:
    """Requests of (time, prompt, new) tokens; every third shares its prompt with others."""
    asks = [
        Ask(at_s, ((number % 3 and number, prompt),), new) for number, (at_s, prompt, new) in enumerate(sorted(lengths))
    ]
    cluster = Cluster(plan)
    return cluster, cluster.run(asks)


@settings(max_examples=150, deadline=None)
@given(
    *(LENGTHS, st.sampled_from([(2, 2, 0), (0, 0, 2), (1, 2, 1)]), st.sampled_from(PolicyName)),
    *(st.integers(448, 900), st.integers(1, 6), st.integers(1, 500), st.integers(0, 500)),
)
def test_whatever_comes_everything_ends_and_nothing_is_kept(
    lengths, sizes, policy, kv_tokens, running, chunk, cache
) -> None:
    shape = WorkerShape(kv_tokens, running, chunk, cache, kv_bytes_per_token=10_000)
    policies = dict.fromkeys(Role, policy)
    plan = ClusterPlan(
        *sizes, COSTS, LinkCosts(1, 50), shape, unified_shape=shape, unified_max_prompt_tokens=200, policies=policies
    )
    cluster, run = played(plan, lengths)
    assert len(run.e2e_s) == len(lengths)
    assert run.refused == {}
    assert run.gaps.count == sum(run.new_tokens) - len(lengths)
    workers = [*cluster._prefills.workers, *cluster._decodes.workers, *cluster._unified.workers]
    assert {worker.rooms.count for worker in workers} <= {0}
    assert {worker.room.free for worker in workers if hasattr(worker, "room")} <= {kv_tokens // 16 * 16}
    for ttft, e2e, gap, cached, prompt in zip(
        run.ttft_s, run.e2e_s, run.longest_gap_s, run.cached_tokens, run.prompt_tokens, strict=True
    ):
        assert 0 < ttft <= e2e + 1e-12
        assert gap <= e2e - ttft + 1e-9
        assert 0 <= cached < prompt
    assert played(plan, lengths)[1].e2e_s == run.e2e_s, "the same again"


@settings(deadline=None)
@given(LENGTHS)
def test_a_faster_engine_is_never_slower_overall(lengths) -> None:
    slow = replace(COSTS, step_us=2000.0, prefill_us_per_token=20.0)
    assert played(ClusterPlan(costs=COSTS, link=NO_LINK), lengths)[1].ended_s <= (
        played(ClusterPlan(costs=slow, link=NO_LINK), lengths)[1].ended_s + 1e-9
    )
