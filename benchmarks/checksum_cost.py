"""What checksums cost a request: `python benchmarks/checksum_cost.py`.

Systems with SGLang on the CPU, one prefill and one decode worker each, are started, asked one request at a time
for a long prompt, and ended, one after the other: `with` a checksum per chunk on both sides, `without`, and `control`,
which is without, too. Two starts of the same system differ by more than a checksum costs, so each round starts each
anew, in turning order, and the control shows how much ratios mean. First token: from sending the request; it comes from
prefill. Second token: decode's first, so all KV has landed and is verified.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from statistics import median, quantiles
from typing import Final

from tandem.cli import settings
from tandem.cli.bench_pd.sides import ENGINES, SideOptions, disaggregated
from tandem.cli.bench_pd.streams import time_stream

SETTING: Final = "TANDEM_RANK_CHECKSUM"
SIDES: Final = {"with": "true", "without": "false", "control": "false"}
BASE: Final = "without"
MAX_TOTAL_TOKENS: Final = 32_768
NEW_TOKENS: Final = 4
WARM_UP: Final = 3
"""Requests to each system that are not counted."""
WHAT: Final = ("first token", "second token")

Times = tuple[float, float]
"""Milliseconds to the first token, and to the second."""


async def ask(address: str, prompt: list[int]) -> Times:
    """One request."""
    timing = await time_stream(address, prompt, NEW_TOKENS)
    return timing.ttft_ms, timing.ttft_ms + timing.gaps_ms[0]


async def measure(tokens: int, rounds: int, requests: int, provider: str, engine: str) -> list[dict[str, Times]]:
    """Medians of each round, by side."""
    dice, found, order = random.Random(0), [], list(SIDES)
    for _ in range(rounds):
        took = {}
        for side in order:
            env = {SETTING: SIDES[side]}
            options = SideOptions(settings.default_model(), 1, MAX_TOTAL_TOKENS, provider, env=env, engine=engine)
            async with disaggregated(options) as address:
                prompts = [[dice.randrange(3, 1000) for _ in range(tokens)] for _ in range(WARM_UP + requests)]
                times = [await ask(address, prompt) for prompt in prompts]
            took[side] = _medians(times[WARM_UP:])
            print(f"{side:<14}{took[side][0]:>7.1f} ms{took[side][1]:>9.1f} ms", flush=True)
        found.append(took)
        order = order[1:] + order[:1]
    return found


def _medians(times: list[Times]) -> Times:
    first, second = (median(column) for column in zip(*times, strict=True))
    return first, second


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="What checksums cost a request.")
    parser.add_argument("--tokens", type=int, default=2000, help="of each prompt")
    parser.add_argument("--rounds", type=int, default=6, help="at least 2; a multiple of 3 has each in each place")
    parser.add_argument("--requests", type=int, default=10, help="to each system in each round")
    parser.add_argument("--provider", default="tcp", choices=["tcp", "cma"])
    parser.add_argument("--engine", default="sglang", choices=ENGINES, help="the mock only shows that all of it works")
    given = parser.parse_args()
    rounds = asyncio.run(measure(given.tokens, given.rounds, given.requests, given.provider, given.engine))
    for index, what in enumerate(WHAT):
        for side in SIDES:
            ratios = [one[side][index] / one[BASE][index] for one in rounds]
            low, middle, high = quantiles(ratios, n=4)
            ms = median(one[side][index] for one in rounds)
            print(f"{what:<14}{side:<10}{ms:>7.1f} ms   {middle:.3f} of {BASE} ({low:.3f} to {high:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
