"""A cluster on the virtual clock: requests come, workers are chosen for them, and everything is counted."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

from tandem.cli.sim_serve.agenda import Agenda
from tandem.cli.sim_serve.costs import EngineCosts, LinkCosts, WorkerShape
from tandem.cli.sim_serve.gaps import Gaps
from tandem.cli.sim_serve.jobs import Ask, Job
from tandem.cli.sim_serve.pages import need
from tandem.cli.sim_serve.setting import Setting
from tandem.cli.sim_serve.workers import DecodeWorker, PrefillWorker, UnifiedWorker
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Incarnation, Role, WorkerId, WorkerLife
from tandem.core.policies import DEFAULT_LOAD_CAP, Candidate, PolicyName, Turn, choose


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What a cluster is made of: pairs of pools, or unified workers."""

    prefill: int = 1
    decode: int = 1
    unified: int = 0
    """Then there are no others."""
    costs: EngineCosts = field(default_factory=EngineCosts)
    link: LinkCosts = field(default_factory=LinkCosts)
    shape: WorkerShape = field(default_factory=WorkerShape)
    policies: Mapping[Role, PolicyName] = field(default_factory=lambda: dict.fromkeys(Role, PolicyName.LEAST_LOAD))
    """Of each role that there is."""
    seed: int = 1
    """Of the policies' dice."""


@dataclass(frozen=True, slots=True)
class Run:
    """What became of all requests, in the order in which they ended."""

    plan: ClusterPlan
    at_s: Sequence[float]
    ttft_s: Sequence[float]
    tpot_s: Sequence[float]
    """Of an answer of one token: 0."""
    e2e_s: Sequence[float]
    longest_gap_s: Sequence[float]
    prompt_tokens: Sequence[int]
    cached_tokens: Sequence[int]
    new_tokens: Sequence[int]
    gaps: Gaps
    refused: int
    """That no worker could ever hold."""
    ended_s: float
    busy: Mapping[str, float]
    """Share of the time in which the workers of a role computed."""
    events: int


class _Chosen(Protocol):
    life: WorkerLife
    in_flight: int


Worker = TypeVar("Worker", bound=_Chosen)


class _Pool(Generic[Worker]):
    """The workers of a role and the policy that chooses among them."""

    def __init__(self, role: Role, workers: list[Worker], plan: ClusterPlan) -> None:
        self.workers = workers
        self._role, self._policy = role, plan.policies[role]
        self._max_running = plan.shape.max_running
        self._by_life = {worker.life: worker for worker in workers}
        self._dice = random.Random(f"{plan.seed} {role.value}")
        self._count = 0

    def choose(self, ask: Ask) -> Worker:
        candidates = [Candidate(worker.life, worker.in_flight, self._max_running) for worker in self.workers]
        turn = Turn(self._count, self._dice.getrandbits(32), ask.session, ask.prefix, DEFAULT_LOAD_CAP)
        self._count += 1
        return self._by_life[choose(self._policy, candidates, turn, self._role).life]


class Cluster:
    """Runs once."""

    def __init__(self, plan: ClusterPlan) -> None:
        """Raises INVALID_ARGUMENT if there is nobody to compute or to decode."""
        if not plan.unified and not (plan.prefill and plan.decode):
            raise TandemError(ErrorReason.INVALID_ARGUMENT, "a cluster has prefill and decode workers, or unified ones")
        self._plan = plan
        self._agenda = Agenda()
        self._gaps = Gaps()
        setting = Setting(self._agenda, plan.costs, plan.link, plan.shape, self._gaps, self._done)
        unified, counts = plan.unified > 0, {"prefill": plan.prefill, "decode": plan.decode, "unified": plan.unified}
        lives = {name: [_life(name, number) for number in range(count)] for name, count in counts.items()}
        self._unified = _Pool(Role.UNIFIED, [UnifiedWorker(life, setting) for life in lives["unified"]], plan)
        self._prefills = _Pool(
            Role.PREFILL, [] if unified else [PrefillWorker(life, setting) for life in lives["prefill"]], plan
        )
        self._decodes = _Pool(
            Role.DECODE, [] if unified else [DecodeWorker(life, setting) for life in lives["decode"]], plan
        )
        self._times = {name: array("d") for name in ("at", "ttft", "tpot", "e2e", "gap")}
        self._tokens = {name: array("q") for name in ("prompt", "cached", "new")}
        self._refused = 0

    def run(self, asks: Iterable[Ask]) -> Run:
        """All requests, in the order of their times, to their ends."""
        self._await(iter(asks))
        self._agenda.run()
        times, tokens = self._times, self._tokens
        return Run(
            self._plan,
            at_s=times["at"],
            ttft_s=times["ttft"],
            tpot_s=times["tpot"],
            e2e_s=times["e2e"],
            longest_gap_s=times["gap"],
            prompt_tokens=tokens["prompt"],
            cached_tokens=tokens["cached"],
            new_tokens=tokens["new"],
            gaps=self._gaps,
            refused=self._refused,
            ended_s=self._agenda.now,
            busy=dict(self._busy()),
            events=self._agenda.ran,
        )

    def _await(self, asks: Iterator[Ask]) -> None:
        ask = next(asks, None)
        if ask is not None:
            self._agenda.at(ask.at_s, partial(self._come, ask, asks))

    def _come(self, ask: Ask, asks: Iterator[Ask]) -> None:
        job = Job(ask, ask.prompt_tokens)
        if need(job) > self._plan.shape.kv_tokens:
            self._refused += 1
        elif self._plan.unified:
            worker = self._unified.choose(ask)
            worker.in_flight += 1
            worker.room.reserve(job, partial(worker.submit, job))
        else:
            decode, prefill = self._decodes.choose(ask), self._prefills.choose(ask)
            job.target = decode
            decode.in_flight += 1
            prefill.in_flight += 1
            # As in Tandem: decode offers its pages, and only then prefill computes.
            decode.room.reserve(job, partial(prefill.submit, job))
        self._await(asks)

    def _done(self, job: Job) -> None:
        for name, seconds in (
            ("at", job.ask.at_s),
            ("ttft", job.ttft_s),
            ("tpot", job.tpot_s),
            ("e2e", job.e2e_s),
            ("gap", job.longest_gap_s),
        ):
            self._times[name].append(seconds)
        self._tokens["prompt"].append(job.prompt_tokens)
        self._tokens["cached"].append(job.cached_tokens)
        self._tokens["new"].append(job.ask.new_tokens)

    def _busy(self) -> Iterator[tuple[str, float]]:
        total = self._agenda.now or 1.0
        for name, shares in (
            ("prefill", [one.busy_s for one in self._prefills.workers]),
            ("decode", [one.decoder.busy_s for one in self._decodes.workers]),
            ("unified", [one.decoder.busy_s + one.prefill_busy_s for one in self._unified.workers]),
        ):
            if shares:
                yield name, sum(shares) / len(shares) / total


def _life(name: str, number: int) -> WorkerLife:
    return WorkerLife(WorkerId(f"{name}-{number}"), Incarnation(1))
