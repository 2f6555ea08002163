"""One run: a cluster, its clients and its faults, all from one seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tandem.cli.sim.agenda import Agenda
from tandem.cli.sim.checks import Invariant, ViolationError
from tandem.cli.sim.gateway import OUTCOME_S, TIMEOUT_S, Gateway, Tally
from tandem.cli.sim.landing import Mover, Provider
from tandem.cli.sim.membership import BOOTSTRAP, Bootstrap
from tandem.cli.sim.memory import Kv, Prompt
from tandem.cli.sim.network import Network
from tandem.cli.sim.sides import GRACE_S, Machines, Offered, Surroundings
from tandem.cli.sim.weather import FAULTS, Faults, Weather
from tandem.cli.sim.worker import NOTICE_S, Worker
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import PAIR, RoomId, WorkerId
from tandem.core.room import events as ev

SPAN_S: Final = 20.0
"""Requests come, and faults happen, in this time; afterwards everything heals."""
DOWN_S: Final = 3.0
STOP_S: Final = 5.0
PART_S: Final = 4.0
SETTLE_S: Final = TIMEOUT_S + OUTCOME_S + GRACE_S + STOP_S + 10.0
MAX_CHUNKS: Final = 3
MAX_CHUNK_PAGES: Final = 3
_WORST: Final = Weather(
    loss=0.02,
    repeat=0.05,
    corrupt=0.01,
    lane_failure=0.03,
    stray_write=0.01,
    hand_in_failure=0.01,
    cancel=0.15,
    crashes=8,
    stops=6,
    partitions=6,
    link_losses=8,
    bootstrap_restarts=2,
    gateway_restarts=2,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is made of."""

    seed: int
    requests: int = 60
    machines: Machines = field(default_factory=Machines)
    mover: type[Mover] = Mover
    provider: Provider | None = None
    """None: by the seed."""
    without: frozenset[str] = frozenset()
    """Kinds of fault, fields of Weather, that do not happen."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run."""

    provider: Provider
    rooms: int
    """Attempts, each a room on a prefill and a decode worker."""
    outcomes: Counter[str]
    """How many requests ended in which way."""
    faults: Counter[str]
    """How often each kind of fault happened."""
    not_moved: int
    """Pages of prompts that decode held already."""
    fingerprint: str
    """Of everything that happened; equal for equal seeds."""
    trace: tuple[str, ...]
    """What happened last."""
    violation: ViolationError | None
    """What broke, and so ended the run."""


class World:
    """Everything that one seed makes."""

    def __init__(self, plan: Plan) -> None:
        self.agenda = agenda = Agenda(plan.seed)
        dice, self._plan = agenda.dice, plan
        provider = self._provider = plan.provider or dice.choice(list(Provider))
        self._faults = Faults(_weather(dice, plan.without), dice)
        self._network = Network(agenda, self._faults)
        mover = plan.mover(agenda, self._network, self._faults, provider)
        around = Surroundings(agenda, self._network, mover, self._faults, plan.machines, self._deliver)
        self._around = around
        self._prompts: list[Prompt] = []
        counts = {role: dice.randint(1, 3) for role in PAIR}
        self._workers = {
            name: Worker(name, role, around)
            for role in PAIR
            for number in range(counts[role])
            for name in [WorkerId(f"{role.value}-{number}")]
        }
        self._bootstrap = Bootstrap(agenda, self._network)
        self._tally = Tally()
        self._gateways = [
            Gateway(f"gateway-{number}", agenda, self._network, self._workers, self._tally)
            for number in range(dice.randint(1, 2))
        ]
        self._instances = 0

    def run(self) -> Outcome:
        """Runs it to the end, or until an invariant breaks."""
        violation = None
        try:
            self._run()
        except ViolationError as error:
            violation = error
        except (AssertionError, KeyError, ValueError, TandemError) as error:
            violation = ViolationError(Invariant.NO_SURPRISE, repr(error))
            violation.__cause__ = error
        return Outcome(
            provider=self._provider,
            rooms=self._tally.rooms,
            outcomes=self._tally.outcomes,
            faults=self._faults.counts,
            not_moved=self._around.not_moved.total(),
            fingerprint=self.agenda.fingerprint,
            trace=tuple(self.agenda.recent),
            violation=violation,
        )

    def _run(self) -> None:
        for gateway in self._gateways:
            self._start_gateway(gateway)
        for worker in self._workers.values():
            self._start(worker)
        for number in range(self._plan.requests):
            self.agenda.soon(SPAN_S, f"client {number} asks", partial(self._ask, number))
        self._plan_faults()
        self.agenda.run(SPAN_S + SETTLE_S)
        self._check_pools()
        if self._tally.outcomes.total() != self._plan.requests:
            raise ViolationError(Invariant.ONE_END, f"{self._plan.requests} requests, outcomes {self._tally.outcomes}")

    def _deliver(self, worker_id: WorkerId, room: RoomId, message: ev.Input | Offered) -> None:
        self._workers[worker_id].receive(room, message)

    def _start(self, worker: Worker) -> None:
        if worker.life is None:
            self._instances += 1
            self._bootstrap.enrol(worker, worker.start(self._instances))

    def _ask(self, number: int) -> None:
        dice = self.agenda.dice
        chunks = tuple(dice.randint(1, MAX_CHUNK_PAGES) for _ in range(dice.randint(1, MAX_CHUNKS)))
        gateway = dice.choice(self._gateways)
        request = gateway.ask(number, self._prompt(number, sum(chunks)), chunks)
        if request.outcome:
            return
        if self._faults.happens("cancel"):
            self.agenda.soon(TIMEOUT_S, f"client {number} leaves", lambda: gateway.leave(request))

    def _prompt(self, number: int, pages: int) -> Prompt:
        """Half of the prompts begin as an earlier one does."""
        dice, start = self.agenda.dice, Prompt()
        if self._prompts and dice.random() < 0.5:
            start = dice.choice(self._prompts)[: dice.randint(1, pages)]
        prompt = start + tuple(Kv(number, index) for index in range(len(start), pages))
        self._prompts.append(prompt)
        return prompt

    def _plan_faults(self) -> None:
        kinds: dict[str, Callable[[], None]] = {
            "crashes": self._crash,
            "stops": self._stop,
            "partitions": self._part,
            "link_losses": self._lose_link,
            "bootstrap_restarts": self._restart_bootstrap,
            "gateway_restarts": self._restart_gateway,
        }
        for name, act in kinds.items():
            per_minute = self._faults.rate(name)
            for _ in range(round(per_minute * SPAN_S / 60 * 2 * self.agenda.dice.random())):
                self.agenda.soon(SPAN_S, f"fault of {name}", act)
                self._faults.counts[name] += 1

    def _any_worker(self) -> Worker:
        return self.agenda.dice.choice(list(self._workers.values()))

    def _crash(self) -> None:
        worker = self._any_worker()
        worker.crash()
        for peer in self._workers.values():
            self._notice(peer, worker.worker_id, ErrorReason.PEER_LOST)
        self.agenda.soon(DOWN_S, f"{worker.worker_id} starts again", lambda: self._start(worker))

    def _stop(self) -> None:
        worker = self._any_worker()
        if worker.life is not None:
            worker.life.stop(self.agenda.dice.random() * STOP_S)

    def _part(self) -> None:
        names = [*self._workers, BOOTSTRAP, *(gateway.name for gateway in self._gateways)]
        one, other = self.agenda.dice.sample(names, 2)
        self._network.cut(one, other, self.agenda.dice.random() * PART_S)
        self._part_links(one, other)

    def _lose_link(self) -> None:
        one, other = self.agenda.dice.sample(list(self._workers), 2)
        self._part_links(one, other)

    def _part_links(self, one: str, other: str) -> None:
        """Both ends of a broken link notice, each in its time."""
        for here, there in ((one, other), (other, one)):
            worker = self._workers.get(WorkerId(here))
            if worker is not None:
                self._notice(worker, WorkerId(there), ErrorReason.LINK_LOST)

    def _notice(self, worker: Worker, peer: WorkerId, reason: ErrorReason) -> None:
        note = f"{worker.worker_id} notices that the link to {peer} is gone"
        self.agenda.soon(NOTICE_S, note, lambda: worker.lose_peer(peer, reason))

    def _restart_bootstrap(self) -> None:
        if self._bootstrap.up:
            self._bootstrap.crash()
            self.agenda.soon(DOWN_S, "bootstrap starts again", self._bootstrap.restart)

    def _restart_gateway(self) -> None:
        gateway = self.agenda.dice.choice(self._gateways)
        if gateway.up:
            gateway.crash()
            self._bootstrap.forget(gateway.name)
            self.agenda.soon(DOWN_S, f"{gateway.name} starts again", lambda: self._start_gateway(gateway))

    def _start_gateway(self, gateway: Gateway) -> None:
        gateway.up = True
        self._bootstrap.watch(gateway.name, gateway.see)

    def _check_pools(self) -> None:
        for worker in self._workers.values():
            life = worker.life
            rooms = [side.ticket.room for side in worker.rooms()]
            if life is not None and (rooms or not life.pool.balanced or not life.rows.balanced):
                raise ViolationError(Invariant.POOLS_BALANCE, f"{life} keeps pages or rows, rooms {rooms}")


def _weather(dice: random.Random, without: frozenset[str]) -> Weather:
    """Every kind of fault somewhere between never and its worst."""
    drawn = {name: getattr(_WORST, name) * dice.random() for name in FAULTS}
    return Weather(**{name: 0.0 if name in without else value for name, value in drawn.items()})
