"""The workers of a role, and the policy that chooses among them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tandem.cli.sim_serve.agenda import Agenda
from tandem.cli.sim_serve.costs import WorkerShape
from tandem.cli.sim_serve.held import HeldPages
from tandem.cli.sim_serve.jobs import Ask
from tandem.core.candidates import Candidate, Candidates
from tandem.core.ids import Incarnation, Role, WorkerId, WorkerLife
from tandem.core.kv_index import NOTHING_HELD, KvMatch
from tandem.core.kv_log import KvLog
from tandem.core.page_ledger import PagePool
from tandem.core.planner.loads import WorkerSight
from tandem.core.policies import BY_HELD_PAGES, DEFAULT_LOAD_CAP, PolicyName, Turn, choose


def _nothing() -> None:
    """Nobody waits for its end."""


@dataclass(slots=True)
class Rooms:
    """How many requests a worker has, as the gateway counts them."""

    life: WorkerLife
    tell: Callable[[WorkerLife, int], None]
    """Hears of each change."""
    joined_s: float = 0.0
    left_s: float | None = None
    """When its last request ended after it was drained."""
    count: int = 0
    empty: Callable[[], None] = _nothing
    """Hears when it has none."""
    held: KvLog | None = None
    """Hears what its prefix cache holds, where somebody wants to know."""

    def enter(self) -> None:
        """One more."""
        self.count += 1
        self.tell(self.life, self.count)

    def leave(self) -> None:
        """One less."""
        self.count -= 1
        self.tell(self.life, self.count)
        if not self.count:
            self.empty()


class Member(Protocol):
    """A worker."""

    rooms: Rooms

    def sight(self) -> WorkerSight:
        """What it would say of itself."""


Worker = TypeVar("Worker", bound=Member)


class Crew(Generic[Worker]):
    """Workers of one role."""

    def __init__(
        self,
        role: Role,
        policy: PolicyName,
        count: int,
        make: Callable[[Rooms], Worker],
        shape: WorkerShape,
        seed: int,
    ) -> None:
        """count: workers at the start. make: a worker of its rooms. shape: of each. seed: of the policy's dice."""
        self.workers: list[Worker] = []
        """Those that have left, too."""
        self._by_life: dict[WorkerLife, Worker] = {}
        self._role, self._policy = role, policy
        self._make, self._shape = make, shape
        self._dice = random.Random(f"{seed} {role.value}")
        self._count = 0
        self._held = HeldPages(shape.page_tokens) if policy in BY_HELD_PAGES else None
        for _ in range(count):
            self._add(0.0)
        self._candidates = self._those_that_serve()

    @property
    def pools(self) -> Sequence[PagePool]:
        """KV pages of those that get requests, in the order of the crew."""
        pages, size = self._shape.kv_tokens // self._shape.page_tokens, self._shape.page_tokens
        return [PagePool(life, pages, size) for life in self._candidates.lives]

    def __len__(self) -> int:
        return len(self._by_life)

    @property
    def has_place(self) -> bool:
        """Whether one of those that get requests would begin with one at once."""
        loads = self._candidates.loads
        return len(loads) > 0 and bool(loads[loads.argmin()] < 1)

    @property
    def serving(self) -> list[Worker]:
        """Those that get requests."""
        return list(self._by_life.values())

    def among(self, roomy: NDArray[np.bool_] | None = None) -> Candidates:
        """roomy: which of those that get requests may be chosen; None = all."""
        return self._candidates if roomy is None else self._candidates.at(np.flatnonzero(roomy))

    def held(self, ask: Ask) -> KvMatch:
        """Who is known to hold how much of a prompt, where the policy goes by that."""
        return NOTHING_HELD if self._held is None else self._held.match(ask.pieces)

    def most_held(self, ask: Ask) -> int:
        """Tokens of a prompt that the one holds that is known to hold most of it."""
        pages = next((pages for pages, _ in self._candidates.holders(self.held(ask))), 0)
        return pages * self._shape.page_tokens

    def choose(self, ask: Ask, among: Candidates) -> Worker:
        """among: those that may be chosen. Raises NO_WORKER if there are none."""
        turn = Turn(self._count, self.draw(), ask.session, ask.prefix, DEFAULT_LOAD_CAP, self.held(ask))
        self._count += 1
        return self.of(choose(self._policy, among, turn, self._role).life)

    def draw(self) -> int:
        """32 random bits."""
        return self._dice.getrandbits(32)

    def of(self, life: WorkerLife) -> Worker:
        """One of those that get requests."""
        return self._by_life[life]

    def join(self, now_s: float) -> None:
        """One more comes."""
        self._add(now_s)
        self._candidates = self._those_that_serve()

    def drain(self, worker_id: WorkerId, agenda: Agenda, ended: Callable[[], None]) -> None:
        """One gets nothing more, and leaves when it has ended what it has; ended: told then, perhaps at once."""
        worker = self._by_life.pop(next(life for life in self._by_life if life.worker_id == worker_id))
        self._candidates = self._those_that_serve()
        if self._held is not None:
            self._held.forget(worker.rooms.life)

        def leave() -> None:
            worker.rooms.left_s = agenda.now
            ended()

        worker.rooms.empty = leave
        if not worker.rooms.count:
            leave()

    def _add(self, now_s: float) -> None:
        life = WorkerLife(WorkerId(f"{self._role.value}-{len(self.workers)}"), Incarnation(1))
        held = None if self._held is None else self._held.follow(life)
        worker = self._make(Rooms(life, self._tell, now_s, held=held))
        self.workers.append(worker)
        self._by_life[life] = worker

    def _tell(self, life: WorkerLife, rooms: int) -> None:
        self._candidates.note_rooms(life, rooms)

    def _those_that_serve(self) -> Candidates:
        return Candidates.of(
            Candidate(life, worker.rooms.count, self._shape.max_running) for life, worker in self._by_life.items()
        )
