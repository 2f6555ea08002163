"""Whether `least_cost` spares a slow prefill worker, and what that saves: `python -m benchmarks.slow_prefill`.

One system with two prefill workers and a decode worker. The second prefill worker is made slow: SGLang computes its
prompts in small chunks, the mock takes more time per token. The same prompts arrive at the same times, drawn by a seed,
with `least_load` for both roles and with `least_cost`, in turns, each run after prompts from which the gateway learns
what its workers can do. Printed are the share of the prompts that the slow worker got and the time to the first token,
each over all runs of a policy, and the ratio of `least_cost` to `least_load`, prompt by prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import httpx

from tests.support.settings import environment
from tests.support.system.asking import body, events, prompt_of
from tests.support.system.system import System, running_system

POLICIES: Final = ("least_load", "least_cost")
SLOW: Final = "prefill-1"
COMMAND_S: Final = 60


@dataclass(slots=True)
class Found:
    """Of one policy."""

    first_s: list[float] = field(default_factory=list)
    slow: int = 0
    """Prompts that the slow worker got."""


def set_policy(system: System, policy: str) -> None:
    """For both roles."""
    env = environment(TANDEM_CLI_STATE_FILE=str(system.folder / "state.json"))
    for role in ("prefill", "decode"):
        words = [sys.executable, "-m", "tandem.cli", "set-policy", policy, "--role", role]
        subprocess.run(words, env=env, check=True, capture_output=True, timeout=COMMAND_S)


async def first_token(client: httpx.AsyncClient, prompt: list[int], after_s: float) -> float:
    """Seconds until the first token of a request that is sent after a while."""
    await asyncio.sleep(after_s)
    began, first = time.monotonic(), 0.0
    async for event in events(client, "/generate", body(prompt, 2, ignore_eos=True)):
        assert "error" not in event, event
        first = first or event["at"]
    return first - began


async def submitted(system: System) -> int:
    """Prompts that the slow worker has got so far, once nothing runs."""
    return (await system.wait_idle())[SLOW].submitted


async def one_run(system: System, client: httpx.AsyncClient, found: Found, given: Any, seed: int, side: int) -> None:
    """The first prompts of a run teach the gateway, and do not count."""
    dice = random.Random(seed)
    times, at = [], 0.0
    for _ in range(given.learn + given.prompts):
        at += dice.expovariate(given.rate)
        times.append(at)
    lengths = [dice.choice(given.tokens) for _ in times]
    prompts = [prompt_of(length, seed=2 * (1000 * seed + place) + side) for place, length in enumerate(lengths)]
    for place in range(given.learn):
        await first_token(client, prompts[place], 0)
    before, start = await submitted(system), times[given.learn]
    asked = zip(prompts[given.learn :], times[given.learn :], strict=True)
    found.first_s += await asyncio.gather(*(first_token(client, prompt, sent - start) for prompt, sent in asked))
    found.slow += await submitted(system) - before


async def measure(system: System, given: Any) -> dict[str, Found]:
    """Both policies in turns. Times and lengths of a pair of runs are alike, tokens are not: no cache may hold them."""
    found = {policy: Found() for policy in POLICIES}
    async with system.client(120) as client:
        for number in range(given.runs):
            for policy in POLICIES[:: 1 if number % 2 else -1]:
                await asyncio.to_thread(set_policy, system, policy)
                await one_run(system, client, found[policy], given, number, POLICIES.index(policy))
    return found


def options_for(given: Any) -> list[str]:
    """Of `tandem up`."""
    slow = {
        "sglang": f'TANDEM_SGLANG_ENGINE_ARGS=["chunked_prefill_size={given.chunk}"]',
        "mock": f"TANDEM_MOCK_PREFILL_US_PER_TOKEN={given.slow_us}",
    }[given.engine]
    return ["--engine", given.engine, "--ratio", "2:1", "--env", f"{SLOW}:{slow}"]


def report(found: dict[str, Found]) -> None:
    """A row for each policy, and the ratio."""
    print("| policy | to the slow worker | first token, ms: median | p90 |")
    print("|---|---|---|---|")
    for policy, one in found.items():
        p90 = quantiles(one.first_s, n=10)[-1]
        share = one.slow / len(one.first_s)
        print(
            f"| `{policy}` | {share:.0%} of {len(one.first_s)} | {1000 * median(one.first_s):.0f} | {1000 * p90:.0f} |"
        )
    other, mine = (found[policy].first_s for policy in POLICIES)
    low, middle, high = quantiles([one / two for one, two in zip(mine, other, strict=True)], n=4)
    print(f"least_cost / least_load, prompt by prompt: {middle:.2f} ({low:.2f} to {high:.2f})")


def arguments() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description="Whether least_cost spares a slow prefill worker.")
    parser.add_argument("--engine", choices=("sglang", "mock"), default="sglang")
    parser.add_argument("--chunk", type=int, default=32, help="SGLang: tokens per chunk of the slow worker")
    parser.add_argument("--slow-us", type=int, default=400, help="mock: time per token of the slow worker")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048], help="lengths of prompts, drawn")
    parser.add_argument("--rate", type=float, default=1.0, help="prompts per second")
    parser.add_argument("--learn", type=int, default=8, help="prompts, one after the other, before each run")
    parser.add_argument("--prompts", type=int, default=20, help="of each run")
    parser.add_argument("--runs", type=int, default=3, help="of each policy")
    return parser


def main() -> int:
    """Command line."""
    given = arguments().parse_args()
    with tempfile.TemporaryDirectory() as folder, running_system(Path(folder), *options_for(given)) as system:
        report(asyncio.run(measure(system, given)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
