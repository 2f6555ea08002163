"""A planner that acts on the simulated cluster: it sees what gateway and workers would say, and no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tandem.cli.sim_serve.agenda import Agenda
from tandem.cli.sim_serve.crew import Crew
from tandem.core.ids import Role
from tandem.core.planner.advice import Advice, Change
from tandem.core.planner.demand import Costs, Demands, Outlook, Traffic
from tandem.core.planner.loads import Comfort, leaver
from tandem.core.planner.steering import Planner, Rules


@dataclass(frozen=True, slots=True)
class Steering:
    """How a cluster is steered."""

    rules: Rules = field(default_factory=Rules)
    """A worker that starts in its role takes its `move_s`."""
    comfort: Comfort = field(default_factory=Comfort)
    outlook: Outlook = field(default_factory=Outlook)
    costs: Costs | None = None
    """What a request takes of a worker; None: it is measured."""
    look_s: float = 1.0
    """Between two looks."""


class Steersman:
    """Looks, and does what the planner says: the worker that leaves finishes what it has, and then starts anew."""

    def __init__(
        self,
        steering: Steering,
        agenda: Agenda,
        crews: Mapping[Role, Crew[Any]],
        traffic: Callable[[], Traffic],
        resized: Callable[[], None],
        goes_on: Callable[[], bool],
    ) -> None:
        """traffic: what the gateway has counted.

        resized: told when workers have come or gone. goes_on: whether there is still something to do."""
        self.changes: list[tuple[float, Advice]] = []
        self._set = steering
        self._agenda = agenda
        self._crews = crews
        self._traffic = traffic
        self._resized = resized
        self._goes_on = goes_on
        self._demands = Demands(steering.outlook, steering.comfort, steering.costs)
        self._planner = Planner(steering.rules)

    def look(self) -> None:
        """Now, and again at an even pace for as long as there is something to do."""
        if not self._goes_on():
            return
        now = self._agenda.now
        sights = [worker.sight() for crew in self._crews.values() for worker in crew.serving]
        advice = self._planner.look(self._demands.look(now, sights, self._traffic()))
        if advice.change is not Change.KEEP:
            self.changes.append((now, advice))
            ready = partial(self._start, advice.gets) if advice.gets is not None else _nothing
            if advice.gives is None:
                ready()
            else:
                name = leaver(sights, advice.gives)
                assert name is not None, "a role that gives has a worker"
                self._crews[advice.gives].drain(name, self._agenda, ready)
                self._resized()
        self._agenda.at(now + self._set.look_s, self.look)

    def _start(self, role: Role) -> None:
        self._agenda.at(self._agenda.now + self._set.rules.move_s, partial(self._join, role))

    def _join(self, role: Role) -> None:
        self._crews[role].join(self._agenda.now)
        self._resized()


def _nothing() -> None:
    """Nobody takes its place."""
