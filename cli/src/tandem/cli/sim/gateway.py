"""Gateways: requests, their attempts on pairs of workers, and what the client gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tandem.cli.sim.agenda import Agenda
from tandem.cli.sim.checks import Invariant, ViolationError
from tandem.cli.sim.memory import Kv, Prompt
from tandem.cli.sim.network import Network
from tandem.cli.sim.sides import Ticket
from tandem.cli.sim.worker import Worker
from tandem.core.cluster import ClusterView, differences
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import PAIR, Role, RoomId, WorkerId, WorkerLife, room_from_random
from tandem.core.policies import Candidate, PolicyName, Turn, choose
from tandem.core.room import events as ev

TIMEOUT_S: Final = 8.0
MAX_ATTEMPTS: Final = 3
OUTCOME_S: Final = 3.0
"""An outcome comes this long after the deadline at the latest."""
RETRY_S: Final = 0.2


@dataclass(slots=True)
class Request:
    """One prompt of a client."""

    number: int
    prompt: Prompt
    chunks: tuple[int, ...]
    deadline: float
    attempts: int = 0
    room: RoomId | None = None
    pair: tuple[WorkerLife, WorkerLife] | None = None
    outcome: str = ""


@dataclass(slots=True)
class Tally:
    """What became of the requests of a run."""

    outcomes: Counter[str] = field(default_factory=Counter)
    rooms: int = 0


class Gateway:
    """One process that tries each request on pairs that it sees, until it is answered or its time is over."""

    def __init__(
        self, name: str, agenda: Agenda, network: Network, workers: Mapping[WorkerId, Worker], tally: Tally
    ) -> None:
        self.name = name
        self._agenda = agenda
        self._network = network
        self._workers = workers
        self._tally = tally
        self.up = False
        self._view = ClusterView()
        self._running: dict[RoomId, Request] = {}
        self._open: list[Request] = []
        self._turns = dict.fromkeys(PAIR, 0)

    def see(self, view: ClusterView) -> None:
        """Another view; attempts on lives that are gone have failed."""
        gone = set(differences(self._view, view).left)
        self._view = view
        for room, request in list(self._running.items()):
            if request.pair and gone & set(request.pair):
                self._failed(room, ev.Why(ErrorReason.PEER_LOST, "a worker is gone"))

    def ask(self, number: int, prompt: Prompt, chunks: tuple[int, ...]) -> Request:
        """A client's request."""
        request = Request(number, prompt, chunks, self._agenda.now + TIMEOUT_S)
        self._open.append(request)
        if not self.up:
            self._end(request, f"error {ErrorReason.LINK_LOST.value}")
            return request
        give_up = partial(self._give_up, request, ErrorReason.DEADLINE_EXCEEDED)
        self._agenda.after(TIMEOUT_S, f"request {number} is out of time", give_up)
        self._agenda.after(TIMEOUT_S + OUTCOME_S, f"request {number} must have an outcome", lambda: _must_end(request))
        self._attempt(request)
        return request

    def leave(self, request: Request) -> None:
        """The client goes away."""
        self._give_up(request, ErrorReason.CANCELLED)

    def crash(self) -> None:
        """The process ends: workers notice that their sessions are gone, clients that their connections are."""
        for request in list(self._open):
            self._give_up(request, ErrorReason.LINK_LOST)
        self.up, self._view = False, ClusterView()

    def _attempt(self, request: Request) -> None:
        if request.outcome:
            return
        try:
            pair = self._choose(Role.PREFILL), self._choose(Role.DECODE)
        except TandemError:
            # As a gateway that has no pair: the client hears it at its deadline, or a pair comes before.
            self._agenda.after(RETRY_S, f"request {request.number} looks again", lambda: self._attempt(request))
            return
        request.attempts += 1
        request.pair = pair
        room = request.room = room_from_random(self._agenda.dice.getrandbits(63))
        self._running[room] = request
        self._tally.rooms += 1
        ticket = Ticket(room, request.prompt, request.chunks, request.deadline, *pair)
        for life in pair:
            worker = self._workers[life.worker_id]
            note = f"room {room} Submit of request {request.number}"
            self._network.call(self.name, life.worker_id, note, self._submitting(worker, ticket))

    def _submitting(self, worker: Worker, ticket: Ticket) -> Callable[[], None]:
        def report(room: RoomId, why: ev.Why | None, answer: Sequence[Kv | None]) -> None:
            note = f"room {room} {'answered' if why is None else why.reason.value}"
            self._network.call(worker.worker_id, self.name, note, lambda: self._hear(room, why, answer))

        return lambda: worker.submit(ticket, report)

    def _choose(self, role: Role) -> WorkerLife:
        candidates = [Candidate(info.life, 0, 8) for info in self._view.routable(role, "tiny")]
        turn = Turn(self._turns[role], self._agenda.dice.getrandbits(32))
        chosen = choose(PolicyName.ROUND_ROBIN, candidates, turn, role)
        self._turns[role] += 1
        return chosen.life

    def _hear(self, room: RoomId, why: ev.Why | None, answer: Sequence[Kv | None]) -> None:
        request = self._running.get(room)
        if request is None:
            return
        if why is not None:
            self._failed(room, why)
            return
        if tuple(answer) != request.prompt:
            raise ViolationError(Invariant.TRUE_TOKENS, f"request {request.number} was answered from {answer}")
        self._end(request, "answered" if request.attempts == 1 else "answered after a retry")

    def _failed(self, room: RoomId, why: ev.Why) -> None:
        """An attempt is over: the other leg is told, and there is another one if that can help."""
        request = self._running.pop(room)
        self._abort(request, room, why)
        request.room = request.pair = None
        if request.attempts >= MAX_ATTEMPTS:
            self._end(request, f"error {why.reason.value}")
        else:
            self._attempt(request)

    def _abort(self, request: Request, room: RoomId, why: ev.Why) -> None:
        for life in request.pair or ():
            worker = self._workers[life.worker_id]
            note = f"room {room} Cancel"
            self._network.call(self.name, life.worker_id, note, partial(worker.abort, room, why))

    def _give_up(self, request: Request, reason: ErrorReason) -> None:
        if request.outcome:
            return
        if request.room is not None:
            self._abort(request, request.room, ev.Why(reason, "given up by the gateway"))
        self._end(request, f"error {reason.value}")

    def _end(self, request: Request, outcome: str) -> None:
        request.outcome = outcome
        self._open.remove(request)
        if request.room is not None:
            self._running.pop(request.room, None)
        self._tally.outcomes[outcome] += 1


def _must_end(request: Request) -> None:
    if not request.outcome:
        raise ViolationError(Invariant.ONE_END, f"request {request.number} has no outcome")
