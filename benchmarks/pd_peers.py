"""Tandem and SGLang's own PD under the same load: `python -m benchmarks.pd_peers --out folder`.

One prefill and one decode worker on every side, with SGLang on the CPU and the tiny model. SGLang's servers stand
behind sglang-router, over NIXL and over Mooncake's TCP, in an environment of their own in the user's cache. All sides
are up at the same time; SGLang's are stopped (SIGSTOP) while another is asked, as NIXL's schedulers ask for news
without a pause. They take turns, round by round, under loads of `tandem bench serve`: some requests per second, and all
at once. `--out` gets the files that `tandem bench compare` takes.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final

import psutil

from benchmarks.sglang_pd.commands import output
from benchmarks.sglang_pd.peer_venv import IMPORTS, PACKAGES, missing, peer_python
from benchmarks.sglang_pd.sides import BASE_PORT, TANDEM, Side, peer_environment, sglang, tandem
from tandem.cli.bench_serve.document import Result, from_json, to_json
from tests.support.settings import environment

PORTS_APART: Final = 200
COMMAND_S: Final = 240
SHOWN: Final = (
    *("ttft_ms.p50", "ttft_ms.p90", "itl_ms.p50", "itl_ms.p90", "itl_ms.p99", "tpot_ms.p50", "e2e_ms.p50"),
    "output_tokens_per_s",
)
ALL_AT_ONCE: Final = "inf"
Found = Mapping[tuple[str, str], Result]
"""By load, as `--rate` has it, and side."""


def started(name: str, number: int, folder: Path, python: str, libraries: str) -> AbstractAsyncContextManager[Side]:
    """One of the sides. number: no other has it."""
    place = folder / name
    place.mkdir()
    if name == TANDEM:
        return tandem(place, pairs=1)
    return sglang(place, name, python, peer_environment(libraries), 1, BASE_PORT + PORTS_APART * number)


def send(side: Side, number: signal.Signals) -> None:
    """A signal to every process of a side, to those that start others first."""
    for pid in side.pids():
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            one.send_signal(number)


@asynccontextmanager
async def awake(name: str, side: Side) -> AsyncIterator[None]:
    """A side runs inside. Tandem, which does nothing while nobody asks, is never stopped."""
    if name != TANDEM:
        send(side, signal.SIGCONT)
    try:
        yield
    finally:
        if name != TANDEM:
            send(side, signal.SIGSTOP)


async def loaded(url: str, rate: str, given: argparse.Namespace, seed: int) -> Result:
    """One run of `tandem bench serve`. Raises SystemExit if it fails."""
    requests = given.at_once if rate == ALL_AT_ONCE else given.requests
    words = ["tandem.cli", "bench", "serve", "--api", "generate", "--url", url, "--json", "--timeout-s", "60"]
    words += ["--rate", rate, "--requests", str(requests), "--seed", str(seed), "--spread", "0.5", "--warm-up", "3"]
    words += ["--prompt-tokens", str(given.prompt_tokens), "--new-tokens", str(given.new_tokens)]
    return from_json(await output(words, environment(), COMMAND_S), "what tandem bench serve printed")


def together(results: Sequence[Result]) -> Result:
    """Runs of one repeat each, as one of several."""
    every = ("seeds", "summaries", "numbers", "clients", "requests", "itl_ms")
    return replace(results[0], **{name: tuple(getattr(one, name)[0] for one in results) for name in every})


async def measure(sides: Mapping[str, Side], given: argparse.Namespace) -> Found:
    """Every side under every load in every round; the order of the sides changes."""
    kept: dict[tuple[str, str], list[Result]] = {}
    for number in range(given.rounds):
        names = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in names:
            async with awake(name, sides[name]):
                for rate in (*given.rates, ALL_AT_ONCE):
                    found = await loaded(sides[name].url, rate, given, given.seed + number)
                    kept.setdefault((rate, name), []).append(found)
        print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
    return {key: together(results) for key, results in kept.items()}


async def run(names: Sequence[str], given: argparse.Namespace, folder: Path, python: str) -> Found:
    """Starts the sides one after the other; SGLang's are stopped as soon as they are ready."""
    async with AsyncExitStack() as stack:
        sides: dict[str, Side] = {}
        for number, name in enumerate(names):
            side = await stack.enter_async_context(started(name, number, folder, python, given.libraries))
            if name != TANDEM:
                send(side, signal.SIGSTOP)
                stack.callback(send, side, signal.SIGCONT)
            sides[name] = side
            print(f"{name} is ready", file=sys.stderr, flush=True)
        return await measure(sides, given)


def table(found: Found) -> str:
    """Medians of the rounds, and of each peer's ratio to Tandem, round by round, the median with its range."""
    names = list(dict.fromkeys(name for _, name in found))
    peers = [name for name in names if name != TANDEM]
    lines = [f"| per second | number | {' | '.join((TANDEM, *(f'{name} | / {TANDEM}' for name in peers)))} |"]
    lines.append("|---" * (3 + 2 * len(peers)) + "|")
    for rate in dict.fromkeys(rate for rate, _ in found):
        for number in SHOWN:
            base = [one[number] for one in found[rate, TANDEM].numbers]
            cells = [rate, number.replace("_ms.", " "), f"{median(base):.1f}"]
            for name in peers:
                values = [one[number] for one in found[rate, name].numbers]
                ratios = [value / other for value, other in zip(values, base, strict=True)]
                cells += [f"{median(values):.1f}", f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]
            lines.append(f"| {' | '.join(cells)} |")
        failed = (sum(one["planned"] - one["answered"] for one in found[rate, name].summaries) for name in names)
        lines.append(f"| {rate} | failed | {' | | '.join(map(str, failed))} |{' |' if peers else ''}")
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description="Tandem and SGLang's own PD under the same load.")
    parser.add_argument("--peers", nargs="*", default=list(IMPORTS), choices=list(IMPORTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rates", nargs="*", default=["1"], help="requests per second; all at once comes after these")
    parser.add_argument("--requests", type=int, default=16, help="of each run at a rate")
    parser.add_argument("--at-once", type=int, default=12, help="of each run of all at once")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pip-arg", action="append", default=[], help="for installing the peers; repeatable")
    parser.add_argument("--libraries", default="", help="folders of libibverbs and its kin, if they are not installed")
    parser.add_argument("--install-only", action="store_true", help="install the peers, say which work, and end")
    parser.add_argument("--out", type=Path, help="folder for results and logs; default: a new one")
    return parser


def main() -> int:
    """Command line; the exit code is 1 if no peer could be measured."""
    given = arguments().parse_args()
    folder = given.out or Path(tempfile.mkdtemp(prefix="tandem-pd-peers-"))
    folder.mkdir(parents=True, exist_ok=True)
    python, names = peer_python(given.pip_arg) if given.peers else sys.executable, [TANDEM]
    for name in given.peers:
        if why := missing(python, name, peer_environment(given.libraries)):
            print(f"{name} is left out: {why}", flush=True)
        else:
            names.append(name)
    if given.install_only:
        return int(len(names) == 1)
    began = time.monotonic()
    found = asyncio.run(run(names, given, folder, python))
    for (rate, name), result in found.items():
        (folder / f"{name.lower()}-{rate}.json").write_text(to_json(result))
    print(f"{table(found)}\n\n{given.rounds} rounds in {time.monotonic() - began:.0f} s; {', '.join(PACKAGES)}")
    print(f"results and logs: {folder}")
    return int(len(names) == 1 and bool(given.peers))


if __name__ == "__main__":
    sys.exit(main())
