"""Many runs, one seed after the other, and what is said of them."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from tandem.cli.sim.checks import ViolationError
from tandem.cli.sim.world import Outcome, Plan, World

MakePlan = Callable[[int], Plan]


@dataclass(slots=True)
class Campaign:
    """What runs have shown so far."""

    first_seed: int
    seeds: int = 0
    rooms: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    providers: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    last: Outcome | None = None
    trace: tuple[str, ...] = ()
    """What happened last in the last run."""
    violation: ViolationError | None = None
    """What ended the campaign; the seed is the last one."""

    @property
    def last_seed(self) -> int:
        """The seed of the last run."""
        return self.first_seed + self.seeds - 1

    def report(self, *, trace: bool = False) -> str:
        """For people: what was run, what became of it, and how to see it again."""
        counted = ", ".join(f"{count} {name}" for name, count in self.outcomes.most_common())
        over = ", ".join(f"{count} {name}" for name, count in sorted(self.providers.items()))
        lines = [f"seeds {self.first_seed}..{self.last_seed} ({over}): {self.rooms} rooms; requests: {counted}"]
        if self.violation is not None or trace:
            lines = [*self.trace, *lines]
        if self.violation is not None:
            lines += [f"seed {self.last_seed}: {self.violation}", f"again: tandem sim run --seed {self.last_seed}"]
        elif self.last is not None:
            lines.append(f"no invariant is broken; fingerprint of seed {self.last_seed}: {self.last.fingerprint}")
        return "\n".join(lines)


def new_seed() -> int:
    """One that has probably never been run."""
    return secrets.randbelow(1 << 40)


def run_seeds(first_seed: int, rooms: int, seconds: float = 0, *, plan: MakePlan = Plan) -> Campaign:
    """Runs seeds from `first_seed` on: until one breaks, there were `rooms` rooms, or `seconds` (0: any) are over."""
    campaign, began = Campaign(first_seed), time.monotonic()
    with suppress(KeyboardInterrupt):  # what was run until then is worth a report
        while campaign.rooms < rooms and not (seconds and time.monotonic() - began > seconds):
            run_one(campaign, plan(first_seed + campaign.seeds))
            if campaign.violation is not None:
                break
    return campaign


def run_one(campaign: Campaign, plan: Plan) -> None:
    """Adds one run to a campaign."""
    world = World(plan)
    try:
        campaign.last = world.run()
    except ViolationError as violation:
        campaign.violation = violation
    else:
        campaign.rooms += campaign.last.rooms
        campaign.outcomes.update(campaign.last.outcomes)
        campaign.faults.update(campaign.last.faults)
        campaign.providers[campaign.last.provider.value] += 1
    campaign.seeds += 1
    campaign.trace = tuple(world.agenda.recent)
