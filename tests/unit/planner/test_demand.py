"""How many workers clients ask for: by what comes and waits, and by what a request takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from tandem.cli.planner.costs import costs_by
from tandem.cli.sim_serve.costs import EngineCosts, WorkerShape
from tandem.cli.sim_serve.model_file import CostModel
from tandem.core.ids import Role, WorkerId
from tandem.core.planner.demand import MOST_EXCESS, Costs, Demands, MeanRequest, Outlook, Traffic
from tandem.core.planner.loads import Comfort, WorkerSight

P, D, U = Role.PREFILL, Role.DECODE, Role.UNIFIED
TAKES = {P: 0.2, D: 0.5, U: 0.7}
PAIR = [WorkerSight(WorkerId("p"), P, 10, running=1), WorkerSight(WorkerId("d"), D, 10, running=5)]


@dataclass
class Gateway:
    """Counts at an even pace, one second a look."""

    demands: Demands
    now: float = 0.0
    traffic: Traffic = field(default_factory=Traffic)

    def runs(
        self, for_s: int, sights: list[WorkerSight] = PAIR, waiting: int = 0, **per_s: int
    ) -> Mapping[Role, float]:
        """Demand at the end. per_s: what is counted each second."""
        for _ in range(for_s):
            grown = {name: getattr(self.traffic, name) + count for name, count in per_s.items()}
            self.traffic, self.now = replace(self.traffic, waiting=waiting, **grown), self.now + 1
            seen = self.demands.look(self.now, sights, self.traffic)
        return {role: load.demand for role, load in seen.roles.items()}


def gateway(costs: Costs | None = None, clear_s: float = 20.0) -> Gateway:
    """One that has just begun."""
    return Gateway(Demands(Outlook(smooth_s=10, clear_s=clear_s), Comfort(), costs))


def takes(request: MeanRequest) -> Mapping[Role, float]:
    """For requests of 100 + 10 tokens."""
    assert (request.prompt_tokens, request.new_tokens) == pytest.approx((100, 10))
    return TAKES


def test_by_costs_it_is_what_comes_times_what_it_takes() -> None:
    found = gateway(takes).runs(200, asked=10, prompt_tokens=1000, begun=3, answer_tokens=30)
    assert found == pytest.approx({P: 10 * 0.2, D: 10 * 0.5}), "whatever few of them begin"


def test_what_waits_adds_what_it_takes_to_be_gone_in_time() -> None:
    found = gateway(takes).runs(200, waiting=40, asked=10, prompt_tokens=1000, begun=10, answer_tokens=100)
    assert found == pytest.approx({P: 12 * 0.2, D: 12 * 0.5})
    crowded = [replace(PAIR[0], waiting=40), replace(PAIR[1], waiting=41)]
    found = gateway(takes).runs(200, crowded, asked=10, prompt_tokens=1000, begun=10, answer_tokens=100)
    assert found == pytest.approx({P: 12 * 0.2, D: 10 * 0.5}), "those are with prefill"


def test_without_costs_what_is_busy_grows_by_what_comes_and_does_not_begin() -> None:
    assert gateway().runs(200, asked=10, begun=10) == pytest.approx({P: 1.0, D: 0.5})
    assert gateway().runs(200, asked=15, begun=10) == pytest.approx({P: 1.5, D: 0.75})
    assert gateway().runs(200, waiting=100, asked=10, begun=10) == pytest.approx({P: 1.5, D: 0.75})
    assert gateway().runs(200, asked=100, begun=1) == pytest.approx({P: MOST_EXCESS, D: 0.5 * MOST_EXCESS})
    assert gateway().runs(200, asked=10) == pytest.approx({P: 1.0, D: 0.5}), "nothing begins: nothing can be told"


def test_it_is_what_is_busy_at_the_least() -> None:
    assert gateway(takes).runs(200) == pytest.approx({P: 1.0, D: 0.5})
    assert gateway(lambda _: {}).runs(200, asked=9, begun=9) == pytest.approx({P: 1.0, D: 0.5})


def test_it_is_a_mean_that_forgets() -> None:
    one = gateway(takes)
    one.runs(100, asked=10, prompt_tokens=1000, begun=10, answer_tokens=100)
    later = one.runs(10, asked=20, prompt_tokens=2000, begun=20, answer_tokens=200)
    assert later[P] == pytest.approx(2 + 2 * (1 - 1 / 2.718), rel=0.01)


def test_a_gateway_that_begins_anew_is_no_load() -> None:
    one = gateway(takes)
    before = one.runs(100, asked=10, prompt_tokens=1000, begun=10, answer_tokens=100)
    one.traffic = Traffic()
    one.runs(1)
    after = one.runs(100, asked=10, prompt_tokens=1000, begun=10, answer_tokens=100)
    assert after == pytest.approx(before, rel=0.01)


def test_unified_workers_beside_pairs_have_their_share() -> None:
    both = [*PAIR, WorkerSight(WorkerId("u"), U, 10, running=15)]
    found = gateway(takes).runs(200, both, asked=40, prompt_tokens=4000, begun=40, answer_tokens=400)
    assert found == pytest.approx({P: 0.25 * 40 * 0.2, D: 0.25 * 40 * 0.5, U: 0.75 * 40 * 0.7})


def test_costs_are_those_of_tandem_plan() -> None:
    """4000 tokens at 100 us; 499 steps of 19.92 ms that 32 share; and what a request takes of a slow link."""
    engine = EngineCosts(prefill_us_per_token=100, step_us=18_000, step_us_per_sequence=60)
    found = costs_by(CostModel(engine, shape=WorkerShape(max_running=32)))(MeanRequest(4000, 500))
    assert found[P] == pytest.approx(0.4)
    assert found[D] == pytest.approx(499 * 0.01992 / 32)
    assert found[U] == pytest.approx(found[P] + found[D])
    slow = costs_by(CostModel(EngineCosts(prefill_us_per_token=1e-6, step_us=1), shape=WorkerShape(max_running=32)))
    assert slow(MeanRequest(4000, 1))[P] == pytest.approx(4000 * 131_072 / 12.5e9 + 1e-4, rel=0.01)
