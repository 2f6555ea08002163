"""A cluster on the virtual clock: requests come, workers are chosen for them, and everything is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from tandem.core.candidates import Candidates
from tandem.core.decode_space import Crew as PagedCrew
from tandem.core.decode_space import DecodeSpace
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import ALONE, PAIR, Role
from tandem.core.pair_book import PairBook
from tandem.core.pair_cost import Prompt
from tandem.core.placement import DEFAULT_UNIFIED_MAX_PROMPT_TOKENS, Team, teams_for
from tandem.core.planner.advice import Advice
from tandem.core.planner.demand import Traffic
from tandem.core.policies import PolicyName


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What a cluster is made of: pairs of pools, unified workers, or both."""

    prefill: int = 1
    decode: int = 1
    unified: int = 0
    costs: EngineCosts = field(default_factory=EngineCosts)
    link: LinkCosts = field(default_factory=LinkCosts)
    shape: WorkerShape = field(default_factory=WorkerShape)
    unified_shape: WorkerShape | None = None
    """Of unified workers; None: that of the others."""
    unified_max_prompt_tokens: int = DEFAULT_UNIFIED_MAX_PROMPT_TOKENS
    """Longest prompt that goes to a unified worker where there are pairs as well."""
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


@dataclass(slots=True)
class _Tally:
    """Requests so far."""

    asked: int = 0
    prompt_tokens: int = 0
    """Of those."""
    entered: int = 0
    """That have got their place."""
    answer_tokens: int = 0
    """Of answers that are whole."""


class Cluster:
    """Runs once."""

    def __init__(self, plan: ClusterPlan) -> None:
        """Raises INVALID_ARGUMENT if there is nobody to compute or to decode."""
        if bool(plan.prefill) != bool(plan.decode) or not (plan.unified or plan.prefill):
            raise TandemError(ErrorReason.INVALID_ARGUMENT, "a cluster has prefill and decode workers, or unified ones")
        self._plan = plan
        self._agenda = Agenda()
        self._gaps = Gaps()
        setting = Setting(self._agenda, plan.costs, plan.link, plan.shape, self._gaps, self._done)
        alone = replace(setting, shape=plan.unified_shape or plan.shape)
        self._unified = _crew(plan, Role.UNIFIED, plan.unified, alone, UnifiedWorker)
        self._prefills = _crew(plan, Role.PREFILL, plan.prefill, setting, PrefillWorker)
        self._decodes = _crew(plan, Role.DECODE, plan.decode, setting, DecodeWorker)
        by_cost = {plan.policies[role] for role in PAIR} == {PolicyName.LEAST_COST}
        self._book = PairBook(lambda: self._agenda.now) if by_cost else None
        crews: Mapping[Role, PagedCrew] = {Role.UNIFIED: self._unified, Role.DECODE: self._decodes}
        self._space = DecodeSpace(lambda role, _: crews[role], plan.keeping.decode_commit)
        shapes = [plan.shape] * bool(plan.decode) + [alone.shape] * bool(plan.unified)
        largest = max(whole_pages(one.kv_tokens, one.page_tokens) for one in shapes)
        self._door = Door(self._agenda, plan.keeping, self._space, largest, self._enter)
        self._protocol = Protocol(plan.rooms) if plan.rooms else None
        self._record = Record()
        self._coming = True
        self._tally = _Tally()
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
            self._traffic,
            self._resized,
            lambda: self._coming or not self._door.idle,
        )

    def _traffic(self) -> Traffic:
        """As the gateway would have counted it."""
        tally = self._tally
        prompts = sum(one.rooms.count for one in self._prefills.workers)
        prompts += sum(one.rooms.count - len(one.decoder) for one in self._unified.workers)
        begun = tally.entered - prompts
        return Traffic(tally.asked, tally.prompt_tokens, begun, tally.answer_tokens, self._door.waiting)

    def _resized(self) -> None:
        self._space.changed()
        self._door.look_again()

    def _await(self, asks: Iterator[Ask]) -> None:
        ask = next(asks, None)
        self._coming = ask is not None
        if ask is not None:
            self._agenda.at(ask.at_s + self._plan.gateway.us_per_request * 1e-6, partial(self._come, ask, asks))

    def _come(self, ask: Ask, asks: Iterator[Ask]) -> None:
        self._tally.asked += 1
        self._tally.prompt_tokens += ask.prompt_tokens
        self._door.knock(Job(ask, ask.prompt_tokens))
        self._await(asks)

    def _enter(self, job: Job) -> None:
        """A request has its place in the gateway, and is sent to its workers: those of the first team with room."""
        self._tally.entered += 1
        for team in self._teams(job.ask):
            if self._alone(job) if team == ALONE else self._pair(job):
                return
        raise AssertionError("a request that has its place has room on some worker")

    def _teams(self, ask: Ask) -> Sequence[Team]:
        if not (self._plan.unified and self._plan.decode):
            return (PAIR, ALONE)
        fresh, short = ask.prompt_tokens - self._unified.most_held(ask), self._plan.unified_max_prompt_tokens
        return teams_for(fresh, short, unified_has_place=self._unified.has_place)

    def _alone(self, job: Job) -> bool:
        """Whether a unified worker has room for it, which then gets it."""
        among = self._roomy(Role.UNIFIED, self._unified, job)
        if not among:
            return False
        worker = self._unified.choose(job.ask, among)
        self._sit(job, worker)
        worker.rooms.enter()
        worker.room.reserve(job, partial(worker.submit, job))
        return True

    def _pair(self, job: Job) -> bool:
        """Whether there is a pair whose decode worker has room for it, which then gets it."""
        among = self._roomy(Role.DECODE, self._decodes, job)
        if not among or not len(self._prefills):
            return False
        prefill, decode = self._cheapest(job, among) if self._book else self._each_by_itself(job, among)
        self._sit(job, decode)
        job.target = decode
        if self._protocol is not None:
            job.room = self._protocol.open(job.ask.at_s + job.ask.client.timeout_s)
        decode.rooms.enter()
        prefill.rooms.enter()
        # As in Tandem: decode offers its pages, and only then prefill computes.
        decode.room.reserve(job, partial(prefill.submit, job))
        return True

    def _each_by_itself(self, job: Job, among: Candidates) -> tuple[PrefillWorker, DecodeWorker]:
        decode = self._decodes.choose(job.ask, among)
        return self._prefills.choose(job.ask, self._prefills.among()), decode

    def _cheapest(self, job: Job, among: Candidates) -> tuple[PrefillWorker, DecodeWorker]:
        """The pair that costs a prompt least; its links are taken for as fast as links that were not used yet."""
        assert self._book is not None, "pairs go by cost"
        shape, held = self._plan.shape, self._prefills.held(job.ask)
        prompt = Prompt(job.prompt_tokens, shape.page_tokens, shape.kv_bytes_per_token)
        bits = self._prefills.draw()
        found = self._book.cheapest(prompt, self._prefills.among(), among, held, lambda *_: True, bits)
        assert found is not None, "all fit each other"
        prefill, decode = found
        job.underway = self._book.begin(prompt, (prefill.life, decode.life), (prefill.held_tokens, decode.held_tokens))
        return self._prefills.of(prefill.life), self._decodes.of(decode.life)

    def _roomy(self, role: Role, crew: Crew[Any], job: Job) -> Candidates:
        """Those of a crew with room for an answer."""
        assert job.ticket is not None, "it has a place"
        (seat,) = job.ticket.ask.seats
        return crew.among(self._space.roomy(job.ticket.ask.pool, role, seat))

    def _sit(self, job: Job, worker: Member) -> None:
        """Room for its answer is kept on that worker now."""
        assert job.ticket is not None, "it has a place"
        (seat,) = job.ticket.ask.seats
        self._space.sit(seat, worker.rooms.life)

    def _done(self, job: Job) -> None:
        self._done_s = self._agenda.now
        self._tally.answer_tokens += job.ask.new_tokens
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


def _crew(
    plan: ClusterPlan, role: Role, count: int, setting: Setting, make: Callable[[Setting, Rooms], Worker]
) -> Crew[Worker]:
    return Crew(role, plan.policies[role], count, partial(make, setting), setting.shape, plan.seed)
