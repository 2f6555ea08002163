"""A planner on a simulated cluster whose load swings between long prompts and long answers, beside the same cluster as
it is: `python -m benchmarks.planner_waves`. Prints one row of a table per load and phase."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from typing import Final

from tandem.cli.bench_serve.numbers import Summary, parse_slo
from tandem.cli.planner.costs import costs_by
from tandem.cli.sim_serve.cluster import Cluster, ClusterPlan
from tandem.cli.sim_serve.costs import EngineCosts, WorkerShape
from tandem.cli.sim_serve.door import Doorkeeping
from tandem.cli.sim_serve.jobs import Ask
from tandem.cli.sim_serve.model_file import CostModel
from tandem.cli.sim_serve.report import summary_of
from tandem.cli.sim_serve.steering import Steering
from tandem.core.fair_queue import QueueLimits

COSTS: Final = EngineCosts(prefill_us_per_token=100, step_us=18_000, step_us_per_sequence=60)
SHAPE: Final = WorkerShape(max_running=32)
KEEPING: Final = Doorkeeping(QueueLimits(160, 1 << 40))
SLO: Final = "ttft=2s,tpot=50ms"
WORKERS: Final = 3
"""Of each role."""
PROMPTS_PER_S: Final = 2.5
"""That a prefill worker computes of the long ones."""
ANSWERS_PER_S: Final = 3.2
"""That a decode worker generates of the long ones, its batch full."""


def wave(load: float, phase_s: float, phases: int, seed: int) -> Iterator[Ask]:
    """Long prompts with short answers, then short prompts with long ones, and so on. load: share of what the workers of
    the role that has most to do can do."""
    dice, at_s, number = random.Random(seed), 0.0, 0
    while at_s < phase_s * phases:
        prompts = int(at_s // phase_s) % 2 == 0
        at_s += dice.expovariate(load * WORKERS * (PROMPTS_PER_S if prompts else ANSWERS_PER_S))
        number += 1
        yield Ask(at_s, ((number, 4000 if prompts else 200),), 20 if prompts else 500)


def played(load: float, phase_s: float, phases: int, seed: int, steering: Steering | None) -> tuple[Summary, int]:
    """Numbers, and changes of workers."""
    plan = ClusterPlan(WORKERS, WORKERS, costs=COSTS, shape=SHAPE, keeping=KEEPING, steering=steering)
    run = Cluster(plan).run(wave(load, phase_s, phases, seed))
    return summary_of(run, parse_slo(SLO)), len(run.changes)


STEERED: Final = {
    "planner, measured": Steering(),
    "planner, by costs": Steering(costs=costs_by(CostModel(COSTS, shape=SHAPE))),
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.7, 0.95, 1.1])
    parser.add_argument("--phases-s", type=float, nargs="+", default=[30, 300, 900, 3600])
    parser.add_argument("--phases", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    names = "".join(f" {name} | changes |" for name in STEERED)
    print(f"| load | phase s | within {SLO}: 3 + 3 as they are |{names}\n|---|---|---|{'---|---|' * len(STEERED)}")
    for load in options.loads:
        for phase_s in options.phases_s:
            at = (load, phase_s, options.phases, options.seed)
            alone, _ = played(*at, None)
            found = [played(*at, steering) for steering in STEERED.values()]
            cells = "".join(f" {summary.slo_share:.0%} | {changes} |" for summary, changes in found)
            print(f"| {load:.0%} | {phase_s:.0f} | {alone.slo_share:.0%} |{cells}", flush=True)


if __name__ == "__main__":
    main()
