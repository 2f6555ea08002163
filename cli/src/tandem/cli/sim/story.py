"""Stories: a broken invariant, told with as few requests and kinds of fault as it needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tandem.cli.sim.checks import ViolationError
from tandem.cli.sim.landing import Provider
from tandem.cli.sim.weather import FAULTS
from tandem.cli.sim.world import Outcome, Plan, World
from tandem.core.errors import ErrorReason, TandemError

TRIES: Final = 200
"""Seeds that are tried for each simpler plan: it draws another schedule, so the old seed shows nothing."""
FEWEST: Final = (1, 2, 4, 8, 16, 32)
"""Numbers of requests that are tried."""


@dataclass(frozen=True, slots=True)
class Story:
    """A plan that breaks an invariant, and what happened."""

    plan: Plan
    violation: ViolationError
    trace: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan, outcome: Outcome) -> Story | None:
        """What a run has shown, if it broke something."""
        return cls(plan, outcome.violation, outcome.trace) if outcome.violation else None

    def document(self) -> dict[str, Any]:
        """For a file that `read` reads again."""
        plan = self.plan
        return {
            "seed": plan.seed,
            "requests": plan.requests,
            "provider": plan.provider.value if plan.provider else None,
            "without": sorted(plan.without),
            "violation": str(self.violation),
            "trace": list(self.trace),
        }


def tell(plan: Plan) -> Story | None:
    """Runs a plan; the story of the invariant that it breaks, if it breaks one."""
    return Story.of(plan, World(plan).run())


def shrink(story: Story) -> Story:
    """The shortest story that was found in which the same invariant breaks.

    First as few requests as possible, then one kind of fault after the other is left out, then fewer requests again.
    """
    story = _first(story, _fewer(story.plan)) or story
    for fault in FAULTS:
        simpler = replace(story.plan, without=story.plan.without | {fault})
        story = _first(story, iter([simpler])) or story
    return _first(story, _fewer(story.plan)) or story


def read(path: Path) -> Plan:
    """The plan of a story's file. Raises TandemError(INVALID_ARGUMENT)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        without, provider = frozenset(found["without"]), found["provider"]
        if unknown := without - set(FAULTS):
            raise ValueError(f"without: {sorted(unknown)} are no kinds of fault; there are {', '.join(FAULTS)}")
        return Plan(
            int(found["seed"]),
            int(found["requests"]),
            provider=Provider(provider) if provider else None,
            without=without,
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{path} is no story: {error!r}", field="story") from None


def _fewer(plan: Plan) -> Iterator[Plan]:
    yield from (replace(plan, requests=count) for count in FEWEST if count < plan.requests)


def _first(story: Story, plans: Iterator[Plan]) -> Story | None:
    """The first of these plans, with some seed, that breaks what the story's plan breaks."""
    for plan in plans:
        for seed in range(TRIES):
            found = tell(replace(plan, seed=seed))
            if found is not None and found.violation.invariant is story.violation.invariant:
                return found
    return None
