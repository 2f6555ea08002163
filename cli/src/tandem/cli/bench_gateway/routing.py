"""The routing decision, in CPU time of a process that holds a gateway's router and no gateway."""

from __future__ import annotations

import asyncio
import json
from typing import Final

from tandem.cli import settings
from tandem.cli.bench_gateway.figures import Figures
from tandem.cli.bench_gateway.scenarios import Field, Sizes, say
from tandem.cli.bench_gateway.sides import TANDEM
from tandem.core.errors import ErrorReason, TandemError

NO_CLIENT: Final = "no client"


async def measure(field: Field, sizes: Sizes, figures: Figures) -> None:
    """Both workers of a request are chosen among 1,000, by each policy."""
    del field
    decisions = 500 if sizes.rounds > 1 else 50
    command = [settings.python(), "-m", "tandem.gateway.routing.routing_bench", "--decisions", str(decisions)]
    for _ in range(sizes.rounds):
        child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=settings.inherited())
        said, _ = await child.communicate()
        if child.returncode:
            raise TandemError(ErrorReason.INTERNAL, "the routing benchmark failed; what it said is above")
        for policy, found in json.loads(said).items():
            for label, took in found.items():
                figures.add(f"routing by {policy}, {label}", TANDEM, NO_CLIENT, took, "us")
    say("routing decisions")
