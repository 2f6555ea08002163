"""Many runs, one seed after the other, and what is said of them."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from tandem.cli.sim.checks import ViolationError
from tandem.cli.sim.story import Story
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
    not_moved: int = 0
    last: Outcome | None = None
    story: Story | None = None
    """What ended the campaign, in its last run."""

    @property
    def last_seed(self) -> int:
        """The seed of the last run."""
        return self.first_seed + self.seeds - 1

    @property
    def violation(self) -> ViolationError | None:
        """What broke in the last run, if anything did."""
        return self.last.violation if self.last else None

    def add(self, plan: Plan, outcome: Outcome) -> None:
        """One more run. What one that broke something has done besides is not counted."""
        self.seeds += 1
        self.last, self.story = outcome, Story.of(plan, outcome)
        if outcome.violation is None:
            self.rooms += outcome.rooms
            self.outcomes.update(outcome.outcomes)
            self.faults.update(outcome.faults)
            self.not_moved += outcome.not_moved
            self.providers[outcome.provider.value] += 1

    def report(self, *, trace: bool = False) -> str:
        """For people: what was run, what became of it, and how to see it again."""
        counted = ", ".join(f"{count} {name}" for name, count in self.outcomes.most_common())
        over = ", ".join(f"{count} {name}" for name, count in sorted(self.providers.items()))
        lines = [f"seeds {self.first_seed}..{self.last_seed} ({over}): {self.rooms} rooms; requests: {counted}"]
        if self.last is not None and (self.violation is not None or trace):
            lines = [*self.last.trace, *lines]
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
        while campaign.rooms < rooms and not campaign.story and not (seconds and time.monotonic() - began > seconds):
            next_plan = plan(first_seed + campaign.seeds)
            campaign.add(next_plan, World(next_plan).run())
    return campaign
