"""Command line of `tandem bench pd`: measures both sides in turn and prints a table.

In each round both sides get the same number of requests at each prompt length, one at a time; then some at once; then
streams that run while prompts of several lengths keep arriving at several rates. Which side goes first changes from
round to round, so that whatever else the machine does hits both alike. Prompts are random token ids, so that no prefix
cache helps. While one side is measured, the other is idle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tandem.cli import settings
from tandem.cli.bench_pd.disturbance import disturb
from tandem.cli.bench_pd.numbers import LONG_TOKENS, PD, PLAIN, SHORT_TOKENS, SIDES, Load, Samples
from tandem.cli.bench_pd.report import document, show
from tandem.cli.bench_pd.sides import ENGINES, SideOptions, disaggregated, plain
from tandem.cli.bench_pd.streams import time_stream
from tandem.core.errors import TandemError

MAX_TOTAL_TOKENS = 32_768
PARALLEL_LENGTHS = (1, 16, 32, 64, 100, 150, 200, 300, 400, 512, 600, 700, 800, 1000, 1200, 1500)
AT_ONCE = 8
LOWEST_TOKEN = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    lengths: tuple[int, ...]
    rounds: int
    requests: int
    """Of each length, side and round."""
    new_tokens: int
    vocabulary: int
    """Prompts are made of tokens LOWEST_TOKEN..vocabulary-1."""
    loads: tuple[Load, ...] = ()
    """What arrives while streams run."""
    streams: int = 4
    stream_tokens: int = 512
    seed: int = 0


async def measure(plan: Plan, addresses: dict[str, str]) -> Samples:
    """Measures both sides, host:port each."""
    dice, samples = random.Random(plan.seed), Samples()

    def prompt(length: int) -> list[int]:
        return [dice.randrange(LOWEST_TOKEN, plan.vocabulary) for _ in range(length)]

    for side in SIDES:
        for length in plan.lengths:
            await time_stream(addresses[side], prompt(length), plan.new_tokens)
    for number in range(plan.rounds):
        sides = SIDES if number % 2 == 0 else tuple(reversed(SIDES))
        for length in plan.lengths:
            for side in sides:
                for _ in range(plan.requests):
                    samples.timings[side, length].append(
                        await time_stream(addresses[side], prompt(length), plan.new_tokens)
                    )
        for side in sides:
            prompts = [prompt(length) for length in PARALLEL_LENGTHS]
            samples.parallel[side].append(await _parallel(addresses[side], prompts, plan.new_tokens))
        for load in plan.loads:
            for side in sides:
                found = await disturb(addresses[side], load, plan.streams, plan.stream_tokens, prompt)
                samples.disturbed[side, load].append(found)
        print(f"round {number + 1} of {plan.rounds}", file=sys.stderr, flush=True)
    return samples


async def _parallel(address: str, prompts: list[list[int]], new_tokens: int) -> float:
    """New tokens per second, AT_ONCE requests at a time."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(prompt: list[int]) -> int:
        async with turn:
            return (await time_stream(address, prompt, new_tokens)).tokens

    started = time.perf_counter()
    tokens = await asyncio.gather(*(one(prompt) for prompt in prompts))
    return sum(tokens) / (time.perf_counter() - started)


async def run(plan: Plan, options: SideOptions) -> Samples:
    """Starts both sides and measures them."""
    print("starting the engine by itself ...", file=sys.stderr, flush=True)
    async with plain(options) as plain_address:
        print("starting Tandem ...", file=sys.stderr, flush=True)
        async with disaggregated(options) as pd_address:
            return await measure(plan, {PD: pd_address, PLAIN: plain_address})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tandem bench pd",
        description="One engine, disaggregated and by itself, side by side on this machine's CPU: SGLang, or the mock.",
    )
    parser.add_argument("--engine", default="sglang", choices=ENGINES, help="on both sides (default sglang)")
    parser.add_argument(
        "--engine-arg", action="append", default=[], metavar="KEY=VALUE", help="on both sides; repeatable"
    )
    parser.add_argument("--model", default="", help="checkpoint folder; default: the tiny model")
    parser.add_argument("--ratio", default="1:1", help="prefill to decode workers (default 1:1)")
    parser.add_argument("--provider", default="auto", choices=["auto", "cma", "tcp"], help="how KV travels")
    parser.add_argument("--lengths", nargs="+", type=int, default=[SHORT_TOKENS, 512, LONG_TOKENS], help="of prompts")
    parser.add_argument("--rounds", type=int, default=7, help="repeats of everything (default 7, at most 1000)")
    parser.add_argument("--requests", type=int, default=4, help="per length, side and round (default 4)")
    parser.add_argument("--new-tokens", type=int, default=64, help="of each answer (default 64)")
    parser.add_argument("--vocabulary", type=int, default=1000, help="token ids are below this (default 1000)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each rank (default 1)")
    parser.add_argument(
        "--plain-threads", type=int, default=0, help="of the engine by itself (default: as --threads; 2: as both ranks)"
    )
    parser.add_argument("--streams", type=int, default=4, help="that run while prompts arrive (default 4)")
    parser.add_argument("--stream-tokens", type=int, default=512, help="of each of them (default 512)")
    parser.add_argument("--arriving", nargs="*", type=int, default=[LONG_TOKENS], help="lengths of these prompts")
    parser.add_argument("--per-s", nargs="*", type=float, default=[0.5, 1.0], help="of them; none: leaves all this out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _loads(arriving: Sequence[int], per_s: Sequence[float]) -> tuple[Load, ...]:
    """Undisturbed first, then each length at each rate."""
    loads = tuple(Load(length, rate) for length in arriving for rate in per_s)
    return (Load(0, 0.0), *loads) if loads else ()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = _parser()
    given = parser.parse_args(argv)
    if not (1 <= given.rounds <= 1000 and given.requests >= 1 and given.new_tokens >= 2 and min(given.lengths) >= 1):
        parser.error("--rounds is 1..1000, --requests at least 1, --new-tokens at least 2, --lengths at least 1 each")
    if given.streams < 1 or given.stream_tokens < 2 or min([*given.arriving, 1]) < 1 or min([*given.per_s, 1]) <= 0:
        parser.error("--streams and --arriving are at least 1, --stream-tokens at least 2, --per-s above 0")
    plan = Plan(
        *(tuple(given.lengths), given.rounds, given.requests, given.new_tokens, given.vocabulary),
        loads=_loads(given.arriving, given.per_s),
        streams=given.streams,
        stream_tokens=given.stream_tokens,
    )
    options = SideOptions(
        *(given.model or settings.default_model(), given.threads, MAX_TOTAL_TOKENS, given.provider, given.ratio),
        engine=given.engine,
        engine_args=tuple(given.engine_arg),
        plain_threads=given.plain_threads,
    )
    try:
        samples = asyncio.run(run(plan, options))
    except TandemError as error:
        print(f"tandem bench pd: {error.message}", file=sys.stderr)
        return 1
    if given.json:
        print(json.dumps(document(samples), indent=2))
    else:
        show(samples, AT_ONCE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
