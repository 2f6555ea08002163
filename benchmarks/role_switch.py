"""How long a worker is gone when it changes its role: `python -m benchmarks.role_switch`.

A system of one prefill and two decode workers, asked all the time. One decode worker becomes a prefill worker and a
decode worker again, as it runs and by a restart in turns. Printed is the time from the question to its answer, which is
the drain, the change and the registration, and how many requests failed meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx

from tandem.cli.switching import switch_here
from tandem.core.ids import Role
from tandem.rpc.credentials import PLAIN
from tests.support.system.asking import body, prompt_of
from tests.support.system.system import System, running_system

POOL: Final = {"mock": (), "sglang": ("--role-switch", "--engine-arg", "max_total_tokens=32768")}
SWITCH_S: Final = 300


@contextlib.asynccontextmanager
async def asked(system: System, clients: int, given: Any) -> AsyncIterator[list[int]]:
    """The status codes of what clients ask meanwhile, one request after the other each."""
    codes: list[int] = []

    async def ask(http: httpx.AsyncClient, number: int) -> None:
        while True:
            response = await http.post("/generate", json=body(prompt_of(given.prompt_tokens, number), given.new_tokens))
            codes.append(response.status_code)

    async with system.client() as http:
        asking = [asyncio.create_task(ask(http, number)) for number in range(clients)]
        try:
            yield codes
        finally:
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)


async def changes(system: System, given: Any) -> dict[str, list[float]]:
    """Seconds of each change: as it runs, and by a restart."""
    took: dict[str, list[float]] = {"live": [], "restart": []}
    name = "decode-1"
    async with asked(system, given.clients, given) as codes:
        for turn in range(given.rounds):
            for how, times in took.items():
                for role in (Role.PREFILL, Role.DECODE):
                    began = time.monotonic()
                    name = await switch_here(
                        system.folder / "state.json", PLAIN, name, role, SWITCH_S, restart=how == "restart"
                    )
                    times.append(time.monotonic() - began)
            print(f"round {turn + 1} of {given.rounds}", file=sys.stderr, flush=True)
    failed = sum(code != 200 for code in codes)
    print(f"{len(codes)} requests meanwhile, {failed} failed")
    return took


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="How long a change of role takes.")
    parser.add_argument("--engine", default="mock", choices=list(POOL))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=16)
    given = parser.parse_args()
    options = ("--engine", given.engine, "--ratio", "1:2", *POOL[given.engine])
    with tempfile.TemporaryDirectory() as folder, running_system(Path(folder), *options) as system:
        took = asyncio.run(changes(system, given))
    print("| | changes | median, s | least, s | most, s |\n|---|---|---|---|---|")
    for how, times in took.items():
        print(f"| {how} | {len(times)} | {median(times):.2f} | {min(times):.2f} | {max(times):.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
