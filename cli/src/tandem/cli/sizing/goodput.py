"""What one candidate can do: the highest rate at which enough requests keep the SLO, and what binds there. Pure.

Each rate is a run of the simulator with the same requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

import numpy as np

from tandem.cli.bench_serve.numbers import Slo
from tandem.cli.sim_serve.cluster import Cluster
from tandem.cli.sim_serve.costs import EngineCosts
from tandem.cli.sim_serve.model_file import CostModel
from tandem.cli.sim_serve.report import kept_of
from tandem.cli.sizing.candidates import Arrangement, Candidate, Kind
from tandem.cli.sizing.capacity import Capacity, capacity_of
from tandem.cli.sizing.sample import Sample

STEP: Final = 1.02
"""Rates that are told apart are so far from each other."""
STEPS: Final = 210
"""Down from the bound, to a 64th of it."""
WARM_UP: Final = 0.25
"""Of the requests, the first: they find the cluster emptier than it will be, and do not count."""
SHARED_FROM: Final = 0.01
"""Of all prompt tokens; where a cache could hold less, none is kept."""
RELIEF: Final = 2.0
"""How much faster, or larger, a part is made to see whether it binds."""
BEYOND: Final = 1.25
"""How far above its goodput a candidate is asked what binds: there relieving anything else does not help."""
TELLS: Final = 0.01
"""A relief that saves less, of the requests or of the bound, tells nothing."""


class Part(Enum):
    """What can bind."""

    PAGES = "pages"
    PLACES = "places"
    """Sequences that a worker runs at once."""
    LINK = "link"
    PREFILL = "prefill"
    DECODE = "decode"
    NONE = "none alone"


ROOM: Final = (Part.PAGES, Part.PLACES)
AS_GOOD: Final = 0.8
"""Of what the best relief saves: room that saves so much is what binds, as a faster engine gives it back sooner."""


@dataclass(frozen=True, slots=True)
class Question:
    """What all candidates are asked."""

    model: CostModel
    sample: Sample
    slo: Slo
    share: float = 0.9
    """Of the requests, at least so many keep the SLO; above 0, at most 1."""
    seed: int = 0
    """Of the policies' dice."""

    @property
    def shared(self) -> bool:
        """Whether prompts have enough in common to keep it."""
        return self.sample.held_share >= SHARED_FROM

    @property
    def sessions(self) -> bool:
        """Whether requests are turns of conversations."""
        return any(ask.session for ask in self.sample.asks)


@dataclass(frozen=True, slots=True)
class Served:
    """A run at one rate, without its warm-up."""

    rate_per_s: float
    kept_share: float
    ttft_ms: float
    """The 90th percentile of the requests."""
    gap_ms: float
    """The 90th percentile of their longest gaps."""
    in_flight: float
    """On average."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a candidate can do."""

    candidate: Candidate
    bound_per_s: float
    """Nothing goes beyond."""
    served: Served | None
    """At the highest rate that keeps the SLO; None: none that was asked for does, down to a 64th of the bound."""
    failed_per_s: float
    """The lowest rate above it that does not."""
    part: Part | None = None
    """What binds; None: not asked."""
    above_per_s: float = 0.0
    """Rates that are not well above it were not asked for."""

    @property
    def goodput_per_s(self) -> float:
        """Requests per second."""
        return self.served.rate_per_s if self.served else 0.0

    @property
    def kind(self) -> Kind:
        """What its cluster is made of."""
        return self.candidate.arrangement.kind

    @property
    def workers(self) -> int:
        """Of every role."""
        return self.candidate.arrangement.workers

    @property
    def per_worker(self) -> float:
        """Each worker's part of the goodput."""
        return self.goodput_per_s / self.workers


def bound_of(capacity: Capacity, one: Arrangement) -> float:
    """Requests per second that workers can't go beyond, whatever the SLO."""
    match one.kind:
        case Kind.UNIFIED:
            return capacity.unified(one.unified)
        case Kind.MIXED:
            return capacity.mixed(one.prefill, one.decode, one.unified)
    return capacity.pairs(one.prefill, one.decode)


def serve(question: Question, candidate: Candidate, rate_per_s: float) -> Served:
    """One run."""
    plan = candidate.plan(question.model, shared=question.shared, seed=question.seed)
    sample = question.sample
    run = Cluster(plan).run(sample.at(rate_per_s))
    counted = np.asarray(run.at_s) >= sample.asks[int(len(sample.asks) * WARM_UP)].at_s / rate_per_s
    refused = sum(run.refused.values())
    kept = np.count_nonzero(kept_of(run, question.slo) & counted)
    if not counted.any():
        return Served(rate_per_s, 0.0, float("inf"), float("inf"), 0.0)
    ttft_ms, gap_ms = (
        float(np.percentile(np.asarray(seconds)[counted], 90)) * 1000 for seconds in (run.ttft_s, run.longest_gap_s)
    )
    share = float(kept / (np.count_nonzero(counted) + refused))
    return Served(rate_per_s, share, ttft_ms, gap_ms, rate_per_s * float(np.mean(run.e2e_s)))


def highest_rate(question: Question, candidate: Candidate, above_per_s: float = 0.0) -> Finding:
    """Halves the rates between the bound and a 64th of it, as a lower rate is no harder. above_per_s: what another way
    to set up the same workers has reached; only what is better by more than a step is asked for."""
    bound = bound_of(capacity_of(question.model, question.sample), candidate.arrangement)
    steps_below = round(math.log(bound / above_per_s) / math.log(STEP)) if above_per_s else STEPS + 2
    fails, keeps, served = -1, steps_below - 1, None
    # Where there is something to beat, most do not: the lowest rate that would is asked first.
    middle = keeps - 1 if above_per_s else (fails + keeps) // 2
    while keeps - fails > 1:
        one = serve(question, candidate, bound * STEP**-middle)
        if one.kept_share >= question.share:
            keeps, served = middle, one
        else:
            fails = middle
        middle = (fails + keeps) // 2
    return Finding(candidate, bound, served, bound * STEP**-fails, above_per_s=above_per_s)


def with_part(question: Question, finding: Finding) -> Finding:
    """The same, with what binds: the part whose relief helps most."""
    for gains in _gains(question, finding):
        most = max(gains.values())
        if most >= TELLS:
            room = [part for part in ROOM if gains[part] >= AS_GOOD * most]
            return replace(finding, part=room[0] if room else max(gains, key=lambda part: gains[part]))
    return replace(finding, part=Part.NONE)


def _gains(question: Question, finding: Finding) -> Iterator[Mapping[Part, float]]:
    """By part, what its relief saves: of the requests at rates that are too high; or, where a run is too short to show
    what is too high, of the bound."""
    arrangement = finding.candidate.arrangement
    models = dict(relieved(question.model, linked=arrangement.kind is not Kind.UNIFIED))
    for rate_per_s in (max(finding.failed_per_s, BEYOND * finding.goodput_per_s), finding.failed_per_s):
        plain = serve(question, finding.candidate, rate_per_s).kept_share
        if plain >= question.share:
            bounds = {
                part: bound_of(capacity_of(model, question.sample), arrangement) for part, model in models.items()
            }
            yield {part: bound / finding.bound_per_s - 1 for part, bound in bounds.items()}
            return
        yield {
            part: serve(replace(question, model=model), finding.candidate, rate_per_s).kept_share - plain
            for part, model in models.items()
        }


def relieved(model: CostModel, *, linked: bool) -> Iterator[tuple[Part, CostModel]]:
    """The model with each part twice as fast, or as large."""
    engine, link, shape = model.engine, model.link, model.shape
    yield Part.PREFILL, replace(model, engine=_faster(engine, "prefill_"))
    yield Part.DECODE, replace(model, engine=_faster(engine, "step_"))
    yield Part.PAGES, replace(model, shape=replace(shape, kv_tokens=round(shape.kv_tokens * RELIEF)))
    yield Part.PLACES, replace(model, shape=replace(shape, max_running=round(shape.max_running * RELIEF)))
    if linked:
        faster = replace(
            link,
            gbytes_per_s=link.gbytes_per_s * RELIEF,
            us_per_chunk=link.us_per_chunk / RELIEF,
            ns_per_page=link.ns_per_page / RELIEF,
        )
        yield Part.LINK, replace(model, link=faster)


def _faster(engine: EngineCosts, prefix: str) -> EngineCosts:
    costs = {name: getattr(engine, name) / RELIEF for name in engine.__slots__ if name.startswith(prefix)}
    return replace(engine, **costs)
