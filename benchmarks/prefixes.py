"""What it saves that decode keeps prefixes: `python -m benchmarks.prefixes`.

Two systems of real processes, one with --keep-prefixes and one without, each a prefill and a decode worker.
Conversations take turns on both: every prompt is all that was said before and something new. Printed are, per turn, the
KV bytes that moved, and medians over the conversations of the time to the first token, which prefill says before
anything has to be there, and to the second, which decode says when all has landed; with the ratio of kept to not kept
of the same conversation and turn, and its quartiles. With several decode workers, --policy chooses among them; each
conversation names itself as a session.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import httpx

from tests.support.system.asking import body, events
from tests.support.system.system import System, running_system

SIDES: Final = {"kept": ("--keep-prefixes",), "not kept": ()}


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer."""

    prompt_tokens: int
    bytes: int
    first_s: float
    """Until the first token."""
    second_s: float
    """Until the second."""
    answer: tuple[int, ...]


async def moved_so_far(system: System) -> int:
    """KV bytes that decode workers have got."""
    return sum(status.kv_bytes for name, status in (await system.wait_idle()).items() if name.startswith("decode"))


async def take_turn(system: System, client: httpx.AsyncClient, prompt: Sequence[int], new_tokens: int) -> Turn:
    """Asks, and looks at what was moved."""
    before = await moved_so_far(system)
    began, times, tokens = time.perf_counter(), [], list[int]()
    async for event in events(client, "/generate", body(prompt, new_tokens, ignore_eos=True)):
        times += [time.perf_counter() - began] * (len(event["output_ids"]) - len(tokens))
        tokens = event["output_ids"]
    moved = await moved_so_far(system) - before
    return Turn(len(prompt), moved, times[0], times[1], tuple(tokens))


async def converse(systems: dict[str, System], number: int, given: Any) -> dict[str, list[Turn]]:
    """One conversation on both sides; who goes first changes from turn to turn. Fails if the answers differ."""
    dice = random.Random(number)
    talk = [dice.randrange(3, 1000) for _ in range(given.start)]
    found: dict[str, list[Turn]] = {side: [] for side in systems}
    for turn in range(given.turns):
        for side in list(systems)[:: 1 if (turn + number) % 2 else -1]:
            async with systems[side].client() as client:
                client.headers["X-Session-Id"] = f"conversation-{number}"
                found[side].append(await take_turn(systems[side], client, talk, given.new_tokens))
        answers = {turns[-1].answer for turns in found.values()}
        assert len(answers) == 1, f"conversation {number}, turn {turn}: {answers}"
        talk += [*answers.pop(), *(dice.randrange(3, 1000) for _ in range(given.said))]
    return found


async def measure(given: Any) -> list[dict[str, list[Turn]]]:
    """Every conversation but the first, which warms up."""
    options = ["--engine", given.engine, "--provider", given.provider, "--page-size", str(given.page_size)]
    options += ["--ratio", f"1:{given.decode}", "--env", f"gateway:TANDEM_GATEWAY_DECODE_POLICY={given.policy}"]
    options += [option for one in given.engine_arg for option in ("--engine-arg", one)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        systems = {}
        for side, own in SIDES.items():
            (here := folder / side.replace(" ", "-")).mkdir()
            systems[side] = await asyncio.to_thread(stack.enter_context, running_system(here, *options, *own))
        return [await converse(systems, number, given) for number in range(given.conversations + 1)][1:]


def line(name: str, kept: Sequence[Turn], others: Sequence[Turn]) -> str:
    """One turn, over the conversations."""
    moved = [sum(one.bytes for one in side) / len(side) / 1e6 for side in (kept, others)]
    cells = [f"{name:>5}{others[0].prompt_tokens:>8}{moved[1]:>10.3f}{moved[0]:>9.3f}{1 - moved[0] / moved[1]:>8.0%}"]
    for time_of in (lambda one: one.first_s, lambda one: one.second_s):
        ratios = [time_of(mine) / time_of(theirs) for mine, theirs in zip(kept, others, strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        times = [1000 * median(time_of(one) for one in side) for side in (others, kept)]
        cells.append(f"{times[0]:>9.1f}{times[1]:>8.1f}  {f'{middle:.2f} ({low:.2f} to {high:.2f})':<20}")
    return "".join(cells)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="What it saves that decode keeps prefixes.")
    parser.add_argument("--engine", choices=("sglang", "mock"), default="sglang")
    parser.add_argument("--provider", choices=("tcp", "cma"), default="tcp")
    parser.add_argument("--engine-arg", action="append", default=[])
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--decode", type=int, default=1, help="decode workers")
    parser.add_argument("--policy", default="least_load", help="among them")
    parser.add_argument("--conversations", type=int, default=8, help="at least 2")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--start", type=int, default=600, help="tokens of the first prompt")
    parser.add_argument("--said", type=int, default=100, help="tokens that the client adds in each turn")
    parser.add_argument("--new-tokens", type=int, default=40, help="of each answer")
    given = parser.parse_args()
    found = asyncio.run(measure(given))
    print("{:<15}{:<27}{:<39}{}".format("", "MB moved", "first token, ms", "second token, ms"))
    print(f" turn  tokens       not     kept   saved{'      not    kept  ratio (quartiles)   ' * 2}")
    for turn in range(given.turns):
        print(line(str(turn + 1), *([talk[side][turn] for talk in found] for side in SIDES)))
    total = [sum(one.bytes for talk in found for one in talk[side]) for side in SIDES]
    print(f"all turns: {total[0] / 1e6:.1f} MB instead of {total[1] / 1e6:.1f}, {1 - total[0] / total[1]:.0%} saved")
    return 0


if __name__ == "__main__":
    sys.exit(main())
