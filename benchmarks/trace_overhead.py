"""What tracing costs the gateway: `python -m benchmarks.trace_overhead`.

Three systems of real processes with the mock engine, which costs next to nothing, so that the gateway is what limits:
one with tracing off, one that samples 1 % of the requests, one that samples all. With --export spans go to a collector
in this process too, else they are only kept in the services' memory. All three run from the start and are asked in
turn, by as many clients at once as --clients says; who is first changes from round to round. A ratio is of requests per
second to those with tracing off in the same round: the median of the rounds, with their quartiles.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import httpx

from tests.support.system.system import System, running_system
from tests.support.tracing.collector import collector

OFF: Final = "off"
SIDES: Final[Mapping[str, Mapping[str, str]]] = {
    OFF: {"TANDEM_TRACE_ENABLED": "false"},
    "1 %": {"TANDEM_TRACE_SAMPLE_RATIO": "0.01"},
    "100 %": {"TANDEM_TRACE_SAMPLE_RATIO": "1"},
}
MOST_LOST: Final = 0.03
"""Share of the throughput that sampling 1 % may cost."""
ENGINE: Final = ("prefill_us_per_token=0", "decode_us_per_step=0", "decode_us_per_sequence=0")
PROMPT: Final = "Let me tell you a long story. " * 8

Round = dict[str, float]
"""Requests per second, by side."""


async def per_second(system: System, clients: int, requests: int, new_tokens: int) -> float:
    """Requests per second of one side, by so many clients that ask again at once."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    body = {"model": system.state.model, "prompt": PROMPT, "max_tokens": new_tokens, "stream": True}
    left = requests

    async def ask_on(client: httpx.AsyncClient) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            answer = await client.post("/v1/completions", json=body)
            answer.raise_for_status()

    async with httpx.AsyncClient(base_url=system.url, timeout=60, trust_env=False, limits=limits) as client:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(ask_on(client))
        return requests / (time.perf_counter() - began)


async def measure(rounds: int, clients: int, requests: int, new_tokens: int, *, export: bool) -> list[Round]:
    """Every round but the first, which warms up."""
    found: list[Round] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kept = await stack.enter_async_context(collector())
        systems = {}
        for place, (side, env) in enumerate(SIDES.items()):
            more = {"TANDEM_TRACE_ENDPOINT": f"http://{kept.address}"} if export else {}
            options = [option for one in ENGINE for option in ("--engine-arg", one)]
            here = folder / str(place)
            here.mkdir()
            start = running_system(here, "--engine", "mock", *options, env={**env, **more})
            systems[side] = await asyncio.to_thread(stack.enter_context, start)
        for number in range(-1, rounds):
            order = list(SIDES)
            turn = number % len(order)
            speeds = {}
            for side in order[turn:] + order[:turn]:
                speeds[side] = await per_second(systems[side], clients, requests, new_tokens)
            if number >= 0:
                found.append(speeds)
    return found


def table(rounds: list[Round]) -> str:
    """Medians and ratios, one line per side."""
    lines = [f"{'tracing':<10}{'requests/s':>12}   to off (quartiles)"]
    for side in SIDES:
        ratios = [one[side] / one[OFF] for one in rounds]
        low, middle, high = quantiles(ratios, n=4)
        speed = median(one[side] for one in rounds)
        lines.append(f"{side:<10}{speed:>12.1f}   {middle:.3f} ({low:.3f} to {high:.3f})")
    return "\n".join(lines)


def main() -> int:
    """Command line; returns the exit code: 1 if sampling 1 % costs more than 3 % of the throughput."""
    parser = argparse.ArgumentParser(description="What tracing costs the gateway.")
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--requests", type=int, default=600, help="per side and round")
    parser.add_argument("--clients", type=int, default=16, help="that ask at once")
    parser.add_argument("--new-tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--export", action="store_true", help="send the spans to a collector, too")
    given = parser.parse_args()
    rounds = asyncio.run(measure(given.rounds, given.clients, given.requests, given.new_tokens, export=given.export))
    print(table(rounds))
    lost = 1 - median(one["1 %"] / one[OFF] for one in rounds)
    print(f"1 % sampled: {lost:.1%} of the throughput lost; at most {MOST_LOST:.0%} is the goal")
    return int(lost > MOST_LOST)


if __name__ == "__main__":
    sys.exit(main())
