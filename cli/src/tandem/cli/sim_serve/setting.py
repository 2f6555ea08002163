"""What all workers of a simulated cluster share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tandem.cli.sim_serve.agenda import Agenda
from tandem.cli.sim_serve.costs import EngineCosts, LinkCosts, WorkerShape
from tandem.cli.sim_serve.gaps import Gaps
from tandem.cli.sim_serve.jobs import Job

Told = Callable[[Job], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """One for all of them."""

    agenda: Agenda
    costs: EngineCosts
    link: LinkCosts
    shape: WorkerShape
    gaps: Gaps
    done: Told
    """Hears of each request that is answered."""
