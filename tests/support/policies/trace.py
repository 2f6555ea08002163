"""Seeded traces of requests on a cluster that exists as numbers only."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tandem.core.ids import Incarnation, Role, WorkerId, WorkerLife
from tandem.core.policies import Candidate, PolicyName, Turn, choose


@dataclass(slots=True)
class Trace:
    """Requests come one after the other, and each holds a room until as many others as it was given have come."""

    places: dict[str, int]
    """What each worker runs at the same time; changed between requests, workers come and go."""
    seed: int = 7
    rooms: Counter[str] = field(default_factory=Counter)
    """Rooms that run, by worker."""
    asked: int = 0
    _ends: dict[int, list[str]] = field(default_factory=dict)
    _dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    def candidates(self) -> list[Candidate]:
        """The workers as a gateway sees them."""
        return [
            Candidate(WorkerLife(WorkerId(name), Incarnation(1)), self.rooms[name], places)
            for name, places in self.places.items()
        ]

    def turn(self) -> Turn:
        """What the next choice may use."""
        return Turn(self.asked, self._dice.getrandbits(32))

    def request(self, policy: PolicyName, turn: Turn, lasts: int) -> str:
        """Routes one, which runs until `lasts` others have come; 0 = it is over at once. Returns its worker."""
        for ended in self._ends.pop(self.asked, ()):
            self.rooms[ended] -= 1
        name = choose(policy, self.candidates(), turn, Role.PREFILL).life.worker_id
        self.asked += 1
        if lasts:
            self.rooms[name] += 1
            self._ends.setdefault(self.asked + lasts - 1, []).append(name)
        return name

    def requests(self, policy: PolicyName, count: int, busy: int) -> Iterator[str]:
        """As many, of which about `busy` run at the same time; yields the worker of each once it is routed."""
        for _ in range(count):
            yield self.request(policy, self.turn(), self.lasting(busy))

    def lasting(self, busy: int) -> int:
        """How long a request lasts so that about `busy` of them run at the same time."""
        return 1 + int(self._dice.expovariate(1 / busy))
