"""Load, cancels and a random kill every 20 s: `python -m benchmarks.soak --minutes 15 --out docs/reliability.md`.

Real processes with the mock engine, two prefill and two decode workers. Every answer is held against the oracle, memory
and descriptors of every process are looked at all the time. Exit code 0: nothing wrong, hung, leaked or stuck.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import psutil

from benchmarks.fault_matrix import filled
from tests.support.faults.load import Outcome, Request, ask, draw
from tests.support.faults.table import table
from tests.support.mock.oracle import Oracle
from tests.support.system.mock_oracle import tiny_oracle
from tests.support.system.system import System, is_idle, running_system

CLIENTS: Final = 8
PROMPT_TOKENS: Final = (1, 15, 16, 17, 60, 130, 300)
NEW_TOKENS: Final = (1, 2, 10, 40, 120)
PACE: Final = ("chunk_tokens=64", "prefill_us_per_token=100", "decode_us_per_step=4000")
CANCELLED_PART: Final = 0.2
LATEST_CANCEL_S: Final = 0.5
HUNG_S: Final = 30.0
KILL_EVERY_S: Final = 20.0
VICTIMS: Final = ("prefill-0", "prefill-1", "decode-0", "decode-1", "bootstrap")
"""Not the gateway: its own memory is to be seen over the whole time, and its clients would go with it."""
SAMPLE_EVERY_S: Final = 5.0
SETTLED_S: Final = 60.0
"""Of a process's life, before its memory counts: it still imports, and fills its buffers."""


@dataclass(slots=True)
class Tally:
    """What became of the requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)

    def count(self, request: Request, *, given_up: bool) -> None:
        """One request has ended."""
        if request.outcome is Outcome.HUNG and given_up:
            self.outcomes["given up by the client"] += 1
            return
        assert request.outcome is not None
        self.outcomes[request.outcome.value] += 1
        if request.outcome is Outcome.ANSWERED and request.rooms > 1:
            self.outcomes["went on"] += 1
        if request.outcome is Outcome.ERROR:
            self.reasons[request.reason] += 1

    @property
    def bad(self) -> int:
        """Requests that must not be."""
        return self.outcomes[Outcome.WRONG.value] + self.outcomes[Outcome.HUNG.value]


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one process."""

    at: float
    """Monotonic seconds."""
    rss_mib: float
    descriptors: int


Lives = dict[tuple[str, int], list[Sample]]
"""Samples of each process, by name and pid."""


async def ask_on(client: httpx.AsyncClient, oracle: Oracle, dice: random.Random, tally: Tally, until: float) -> None:
    """One client: asks again and again, and gives up on some."""
    while time.monotonic() < until:
        request = draw(
            dice,
            oracle,
            dice.choice(NEW_TOKENS),
            prompt_tokens=dice.choice(PROMPT_TOKENS),
            stream=dice.random() < 0.5,
        )
        given_up = dice.random() < CANCELLED_PART
        try:
            async with asyncio.timeout(dice.uniform(0, LATEST_CANCEL_S) if given_up else HUNG_S):
                await ask(client, request)
        except TimeoutError:
            pass
        tally.count(request, given_up=given_up)


async def kill_on(system: System, dice: random.Random, tally: Tally, until: float) -> None:
    """Kills one of the victims, every KILL_EVERY_S; the last one early enough to come back.

    In rounds: `tandem up` gives a process up that dies again and again.
    """
    victims: list[str] = []
    while time.monotonic() + 2 * KILL_EVERY_S < until:
        await asyncio.sleep(KILL_EVERY_S)  # the rhythm of the faults
        victims = victims or dice.sample(VICTIMS, len(VICTIMS))
        victim = victims.pop()
        system.kill(victim)
        tally.kills[victim] += 1


async def look_on(system: System, lives: Lives, until: float) -> None:
    """Looks at every process, every SAMPLE_EVERY_S."""
    while time.monotonic() < until:
        for row in system.state.processes:
            try:
                process = psutil.Process(row.pid)
                sample = Sample(time.monotonic(), process.memory_info().rss / 2**20, process.num_fds())
            except psutil.NoSuchProcess:
                continue
            lives.setdefault((row.name, row.pid), []).append(sample)
        await asyncio.sleep(SAMPLE_EVERY_S)


async def soak(system: System, minutes: float, seed: int) -> tuple[Tally, Lives, bool]:
    """The whole run: what became of requests, what the processes took, and whether all pools are full afterwards."""
    oracle, tally, lives = tiny_oracle(), Tally(), Lives()
    until = time.monotonic() + minutes * 60
    async with system.client() as client, asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(ask_on(client, oracle, random.Random(f"{seed} {number}"), tally, until))
        group.create_task(kill_on(system, random.Random(seed), tally, until))
        group.create_task(look_on(system, lives, until))
    statuses = await system.wait_idle()
    return tally, lives, len(statuses) == len(VICTIMS) - 1 and all(map(is_idle, statuses.values()))


# ------------------------------------------------------------ the page


def slope_mib_per_h(samples: Sequence[Sample]) -> float | None:
    """Growth of memory over a life, without its beginning; None if what is left is too short to tell."""
    settled = [one for one in samples if one.at - samples[0].at >= SETTLED_S]
    if len(settled) < 2 or settled[-1].at - settled[0].at < SETTLED_S:
        return None
    slope, _ = np.polyfit([one.at for one in settled], [one.rss_mib for one in settled], 1)
    return float(slope) * 3600


def report(tally: Tally, lives: Lives, minutes: float, provider: str, idle: bool) -> str:
    """The figures as tables."""
    errors = ", ".join(f"`{reason}` {count}" for reason, count in sorted(tally.reasons.items()))
    outcomes = tally.outcomes
    rows = [
        ("minutes, over " + provider, f"{minutes:g}"),
        ("processes killed", ", ".join(f"{name} {count}" for name, count in sorted(tally.kills.items()))),
        ("answered right", outcomes[Outcome.ANSWERED.value]),
        ("of them gone on, on other workers, after a part was out", outcomes["went on"]),
        ("given up by the client", outcomes["given up by the client"]),
        ("ended with a clear error", f"{outcomes[Outcome.ERROR.value]}{f': {errors}' if errors else ''}"),
        ("wrong", outcomes[Outcome.WRONG.value]),
        ("hung", outcomes[Outcome.HUNG.value]),
        ("every pool full afterwards", "yes" if idle else "**no**"),
    ]
    return "\n\n".join([table(["in all", ""], rows), _processes(lives)])


def _processes(lives: Lives) -> str:
    rows = []
    for name in sorted({name for name, _ in lives}):
        own = [samples for (owner, _), samples in lives.items() if owner == name]
        slopes = [slope for samples in own if (slope := slope_mib_per_h(samples)) is not None]
        longest = max(own, key=lambda samples: samples[-1].at - samples[0].at)
        settled = [one for one in longest if one.at - longest[0].at >= SETTLED_S] or longest
        rows.append(
            (
                name,
                len(own),
                f"{longest[-1].at - longest[0].at:.0f} s",
                f"{settled[0].rss_mib:.1f} → {settled[-1].rss_mib:.1f}",
                f"{slope_mib_per_h(longest) or 0:+.1f}",
                f"{np.median(slopes):+.1f}" if slopes else "",
                f"{min(one.descriptors for one in settled)} – {max(one.descriptors for one in settled)}",
            )
        )
    titles = ["process", "lives", "longest life", "its MiB", "MiB per h", "median of all lives", "its descriptors"]
    return table(titles, rows)


def main() -> int:
    """Reads the arguments, runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--provider", choices=("tcp", "cma"), default="cma")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--out", type=Path, help="page to write the tables to")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tandem-soak-"))
    print(f"seed {given.seed}; logs are in {folder}", flush=True)
    options = [part for one in PACE for part in ("--engine-arg", one)]
    with running_system(folder, "--engine", "mock", "--ratio", "2:2", "--provider", given.provider, *options) as system:
        tally, lives, idle = asyncio.run(soak(system, given.minutes, given.seed))
    text = report(tally, lives, given.minutes, given.provider, idle)
    print(text)
    if given.out:
        page = given.out.read_text(encoding="utf-8")
        given.out.write_text(filled(page, text, made_by="benchmarks/soak.py", name="soak"), encoding="utf-8")
    return 0 if idle and not tally.bad else 1


if __name__ == "__main__":
    sys.exit(main())
