"""A cluster on the virtual clock: requests come, workers are chosen for them, and everything is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tandem.cli.sim.sides import Machines
from tandem.cli.sim_serve.agenda import Agenda
from tandem.cli.sim_serve.costs import EngineCosts, GatewayCosts, LinkCosts, WorkerShape
from tandem.cli.sim_serve.crew import Crew, Member, Rooms, Worker
from tandem.cli.sim_serve.door import Door, Doorkeeping
from tandem.cli.sim_serve.gaps import Gaps
from tandem.cli.sim_serve.jobs import Ask, Job
from tandem.cli.sim_serve.pages import whole_pages
from tandem.cli.sim_serve.protocol import Protocol, RoomTally
from tandem.cli.sim_serve.record import Record, Totals
from tandem.cli.sim_serve.setting import Setting
from tandem.cli.sim_serve.steering import Steering, Steersman
from tandem.cli.sim_serve.workers import DecodeWorker, PrefillWorker, UnifiedWorker
from tandem.core.decode_space import Crew as PagedCrew
from tandem.core.decode_space import DecodeSpace
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role
from tandem.core.planner.advice import Advice
from tandem.core.policies import PolicyName


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
    gateway: GatewayCosts = field(default_factory=GatewayCosts)
    policies: Mapping[Role, PolicyName] = field(default_factory=lambda: dict.fromkeys(Role, PolicyName.LEAST_LOAD))
    """Of each role that there is."""
    keeping: Doorkeeping = field(default_factory=Doorkeeping)
    rooms: Machines | None = None
    """Each request's room is run by these; None: rooms are not run. Of pairs."""
    seed: int = 1
    """Of the policies' dice."""
    steering: Steering | None = None
    """None: the workers stay as they are."""


@dataclass(frozen=True, slots=True)
class Run:
    """What became of all requests, in the order in which they ended; of very many (record.MOST_ROWS) evenly some."""

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
    totals: Totals
    """Of all."""
    gaps: Gaps
    refused: Mapping[str, int]
    """Requests without an answer, by reason."""
    ended_s: float
    busy: Mapping[str, float]
    """Share of the time in which the workers of a role computed."""
    events: int
    changes: Sequence[tuple[float, Advice]] = ()
    """What the planner changed, and when it said so."""
    rooms: RoomTally | None = None
    """Where rooms are run."""


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
        pairs = not plan.unified
        self._unified = _crew(plan, Role.UNIFIED, plan.unified, partial(UnifiedWorker, setting))
        self._prefills = _crew(plan, Role.PREFILL, plan.prefill * pairs, partial(PrefillWorker, setting))
        self._decodes = _crew(plan, Role.DECODE, plan.decode * pairs, partial(DecodeWorker, setting))
        crews: Mapping[Role, PagedCrew] = {Role.UNIFIED: self._unified, Role.DECODE: self._decodes}
        self._space = DecodeSpace(lambda role, _: crews[role], plan.keeping.decode_commit)
        largest = whole_pages(plan.shape.kv_tokens, plan.shape.page_tokens)
        self._door = Door(self._agenda, plan.keeping, self._space, largest, self._enter)
        self._protocol = Protocol(plan.rooms) if plan.rooms else None
        self._record = Record()
        self._coming = True
        self._done_s = 0.0
        self._steersman = self._steered(plan.steering) if plan.steering else None

    def run(self, asks: Iterable[Ask]) -> Run:
        """All requests, in the order of their times, to their ends."""
        self._await(iter(asks))
        if self._steersman:
            self._steersman.look()
        self._agenda.run()
        at_s, ttft_s, tpot_s, e2e_s, longest_gap_s = self._record.times
        prompt_tokens, cached_tokens, new_tokens = self._record.counts
        return Run(
            self._plan,
            at_s,
            ttft_s,
            tpot_s,
            e2e_s,
            longest_gap_s,
            prompt_tokens,
            cached_tokens,
            new_tokens,
            totals=self._record.totals,
            gaps=self._gaps,
            refused=dict(self._door.turned_away),
            ended_s=self._ended_s,
            busy=dict(self._busy()),
            events=self._agenda.ran,
            changes=self._steersman.changes if self._steersman else (),
            rooms=self._protocol.tally if self._protocol else None,
        )

    @property
    def _ended_s(self) -> float:
        """A planner looks, and workers start, for a little longer than there are requests."""
        return self._done_s if self._steersman else self._agenda.now

    def _steered(self, steering: Steering) -> Steersman:
        crews: dict[Role, Crew[Any]] = {
            Role.PREFILL: self._prefills,
            Role.DECODE: self._decodes,
            Role.UNIFIED: self._unified,
        }
        return Steersman(
            steering,
            self._agenda,
            crews,
            self._resized,
            lambda: self._coming or not self._door.idle,
        )

    def _resized(self) -> None:
        self._space.changed()
        self._door.look_again()

    def _await(self, asks: Iterator[Ask]) -> None:
        ask = next(asks, None)
        self._coming = ask is not None
        if ask is not None:
            self._agenda.at(ask.at_s + self._plan.gateway.us_per_request * 1e-6, partial(self._come, ask, asks))

    def _come(self, ask: Ask, asks: Iterator[Ask]) -> None:
        self._door.knock(Job(ask, ask.prompt_tokens))
        self._await(asks)

    def _enter(self, job: Job) -> None:
        """A request has its place in the gateway, and is sent to its workers."""
        if self._plan.unified:
            worker = self._seated(Role.UNIFIED, self._unified, job)
            worker.rooms.enter()
            worker.room.reserve(job, partial(worker.submit, job))
            return
        decode, prefill = self._seated(Role.DECODE, self._decodes, job), self._prefills.choose(job.ask)
        job.target = decode
        if self._protocol is not None:
            job.room = self._protocol.open(job.ask.at_s + job.ask.client.timeout_s)
        decode.rooms.enter()
        prefill.rooms.enter()
        # As in Tandem: decode offers its pages, and only then prefill computes.
        decode.room.reserve(job, partial(prefill.submit, job))

    def _seated(self, role: Role, crew: Crew[Worker], job: Job) -> Worker:
        """A worker with room for an answer, which is kept for it now."""
        assert job.ticket is not None, "it has a place"
        (seat,) = job.ticket.ask.seats
        worker = crew.choose(job.ask, self._space.roomy(job.ticket.ask.pool, role, seat))
        self._space.sit(seat, worker.rooms.life)
        return worker

    def _done(self, job: Job) -> None:
        self._done_s = self._agenda.now
        if self._door.left(job):
            self._record.add(job)

    def _busy(self) -> Iterator[tuple[str, float]]:
        for name, workers, busy_s in (
            ("prefill", self._prefills.workers, [one.busy_s for one in self._prefills.workers]),
            ("decode", self._decodes.workers, [one.decoder.busy_s for one in self._decodes.workers]),
            (
                "unified",
                self._unified.workers,
                [one.decoder.busy_s + one.prefill_busy_s for one in self._unified.workers],
            ),
        ):
            if workers:
                yield name, sum(busy_s) / (sum(map(self._there_s, workers)) or 1.0)

    def _there_s(self, worker: Member) -> float:
        """Seconds for which it was there."""
        rooms = worker.rooms
        return max(0.0, (self._ended_s if rooms.left_s is None else rooms.left_s) - rooms.joined_s)


def _crew(plan: ClusterPlan, role: Role, count: int, make: Callable[[Rooms], Worker]) -> Crew[Worker]:
    return Crew(role, plan.policies[role], count, make, plan.shape, plan.seed)
