"""What `tandem sim` does; imported only then, so that no other command waits for it."""

from __future__ import annotations

import json
from pathlib import Path

from tandem.cli.sim import story
from tandem.cli.sim.campaign import new_seed, run_seeds
from tandem.rpc.exits import ExitCode


def run(seed: int | None, rooms: int, seconds: float, *, trace: bool, shrink: Path | None) -> ExitCode:
    """Runs seeds, prints the report, and writes the shortest story of what breaks if `shrink` names a file."""
    campaign = run_seeds(new_seed() if seed is None else seed, rooms, seconds)
    print(campaign.report(trace=trace))
    if campaign.story is None:
        return ExitCode.OK
    if shrink is not None:
        shrink.write_text(json.dumps(story.shrink(campaign.story).document(), indent=2), encoding="utf-8")
        print(f"the shortest story: tandem sim tell {shrink}")
    return ExitCode.FAILED


def tell(path: Path) -> ExitCode:
    """Runs a story again and prints it."""
    found = story.tell(story.read(path))
    print("\n".join([*found.trace, str(found.violation)]) if found else "no invariant is broken any more")
    return ExitCode.FAILED if found else ExitCode.OK
