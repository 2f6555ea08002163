"""The workers of a role, and the policy that chooses among them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tandem.cli.sim_serve.costs import WorkerShape
from tandem.cli.sim_serve.jobs import Ask
from tandem.core.candidates import Candidate, Candidates
from tandem.core.ids import Role, WorkerLife
from tandem.core.page_ledger import PagePool
from tandem.core.policies import DEFAULT_LOAD_CAP, PolicyName, Turn, choose


@dataclass(slots=True)
class Rooms:
    """How many requests a worker has, as the gateway counts them."""

    life: WorkerLife
    tell: Callable[[WorkerLife, int], None]
    """Hears of each change."""
    count: int = 0

    def enter(self) -> None:
        """One more."""
        self.count += 1
        self.tell(self.life, self.count)

    def leave(self) -> None:
        """One less."""
        self.count -= 1
        self.tell(self.life, self.count)


class Member(Protocol):
    """A worker."""

    rooms: Rooms


Worker = TypeVar("Worker", bound=Member)


class Crew(Generic[Worker]):
    """Workers of one role."""

    def __init__(
        self,
        role: Role,
        policy: PolicyName,
        lives: Iterable[WorkerLife],
        make: Callable[[Rooms], Worker],
        shape: WorkerShape,
        seed: int,
    ) -> None:
        """make: a worker of its rooms. shape: of each. seed: of the policy's dice."""
        self._candidates = Candidates.of(Candidate(life, 0, shape.max_running) for life in lives)
        pages = shape.kv_tokens // shape.page_tokens
        self.pools = tuple(PagePool(life, pages, shape.page_tokens) for life in self._candidates.lives)
        """KV pages, in the order of the crew."""
        self._by_life = {life: make(Rooms(life, self._candidates.note_rooms)) for life in self._candidates.lives}
        self.workers = list(self._by_life.values())
        self._role, self._policy = role, policy
        self._dice = random.Random(f"{seed} {role.value}")
        self._count = 0

    def choose(self, ask: Ask, roomy: NDArray[np.bool_] | None = None) -> Worker:
        """roomy: which of them may be chosen; None = all. Raises NO_WORKER if there are none."""
        among = self._candidates if roomy is None else self._candidates.at(np.flatnonzero(roomy))
        turn = Turn(self._count, self._dice.getrandbits(32), ask.session, ask.prefix, DEFAULT_LOAD_CAP)
        self._count += 1
        return self._by_life[choose(self._policy, among, turn, self._role).life]
