"""What checksums cost a request: `python benchmarks/checksum_cost.py`. Needs SGLang.

Two systems with real SGLang on the CPU, one prefill and one decode worker each, one with a checksum per chunk on both
sides and one without. They are asked in turn, one request at a time, for a long prompt; who is first changes from round
to round. First token: from sending the request; it comes from prefill. Second token: decode's first, so all KV has
landed and is verified. The last column is the median of the rounds' ratios, with their quartiles.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from contextlib import AsyncExitStack
from statistics import median, quantiles
from typing import Final

from tandem.cli import settings
from tandem.cli.bench_pd.sides import SideOptions, disaggregated
from tandem.cli.bench_pd.streams import time_stream

SETTING: Final = "TANDEM_RANK_CHECKSUM"
SIDES: Final = {"with": "true", "without": "false"}
MAX_TOTAL_TOKENS: Final = 32_768
NEW_TOKENS: Final = 4
WHAT: Final = ("first token", "second token")

Times = tuple[float, float]
"""Milliseconds to the first token, and to the second."""


async def ask(address: str, prompt: list[int]) -> Times:
    """One request."""
    timing = await time_stream(address, prompt, NEW_TOKENS)
    return timing.ttft_ms, timing.ttft_ms + timing.gaps_ms[0]


async def measure(tokens: int, rounds: int, requests: int, provider: str) -> list[dict[str, Times]]:
    """Medians of each round, by side."""
    dice, found = random.Random(0), []
    async with AsyncExitStack() as stack:
        addresses = {}
        for side, value in SIDES.items():
            env = {SETTING: value}
            options = SideOptions(settings.default_model(), 1, MAX_TOTAL_TOKENS, provider, env=env)
            addresses[side] = await stack.enter_async_context(disaggregated(options))
        for number in range(-1, rounds):
            took: dict[str, list[Times]] = {side: [] for side in SIDES}
            for turn in range(requests):
                for side in SIDES if (number + turn) % 2 == 0 else reversed(SIDES):
                    took[side].append(await ask(addresses[side], [dice.randrange(3, 1000) for _ in range(tokens)]))
            if number >= 0:  # the first round warms up
                found.append({side: _medians(times) for side, times in took.items()})
    return found


def _medians(times: list[Times]) -> Times:
    first, second = (median(column) for column in zip(*times, strict=True))
    return first, second


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="What checksums cost a request.")
    parser.add_argument("--tokens", type=int, default=2000, help="of each prompt")
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--requests", type=int, default=4, help="per side and round")
    parser.add_argument("--provider", default="tcp", choices=["tcp", "cma"])
    given = parser.parse_args()
    rounds = asyncio.run(measure(given.tokens, given.rounds, given.requests, given.provider))
    print(f"{'':<14}{'with':>10}{'without':>10}   ratio")
    for index, what in enumerate(WHAT):
        ms = {side: median(one[side][index] for one in rounds) for side in SIDES}
        ratios = [one["with"][index] / one["without"][index] for one in rounds]
        low, middle, high = quantiles(ratios, n=4)
        print(f"{what:<14}{ms['with']:>7.1f} ms{ms['without']:>7.1f} ms   {middle:.3f} ({low:.3f} to {high:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
