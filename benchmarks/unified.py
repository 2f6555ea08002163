"""Up to which prompt a unified worker beats a pair: `python -m benchmarks.unified`.

One system with a pair and a unified worker, and two gateways before it, of which one knows no short prompt and the
other no long one. Both are asked the same prompts in turns, first with nothing else to do, then while other answers
are generated, as many on the decode worker as on the unified one. Printed are medians of the time to the first token
and to the last, and the ratio of the unified worker to the pair, prompt by prompt, with its quartiles: below 1 the
unified worker is the faster one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final, NamedTuple

import httpx

from tests.support.settings import environment
from tests.support.system.asking import body, events, prompt_of
from tests.support.system.system import MODEL, running_system

LIMIT: Final = "TANDEM_GATEWAY_UNIFIED_MAX_PROMPT_TOKENS"
NO_LIMIT: Final = 1 << 20
SIDES: Final = ("pair", "unified")
READY_S: Final = 60.0
BACKGROUND_PROMPT: Final = 16


class Times(NamedTuple):
    """Of one answer: until its first token, and until its last."""

    first_s: float
    last_s: float


@contextlib.asynccontextmanager
async def pairs_only(bootstrap: str) -> AsyncIterator[str]:
    """A second gateway, to which no prompt is a short one; its URL."""
    settings = {
        "TANDEM_GATEWAY_PORT": "0",
        "TANDEM_GATEWAY_ADMIN_ADDRESS": "127.0.0.1:0",
        "TANDEM_GATEWAY_MODEL_PATH": str(MODEL),
        "TANDEM_GATEWAY_BOOTSTRAP_ADDRESS": bootstrap,
        LIMIT: "0",
    }
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tandem.gateway"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment(**settings),
    )
    assert child.stdout is not None
    try:
        line = (await asyncio.wait_for(child.stdout.readline(), READY_S)).decode()
        assert line.startswith("listening gateway "), line
        yield f"http://{line.split()[2]}"
    finally:
        child.terminate()
        await child.wait()


async def ask(client: httpx.AsyncClient, prompt: Sequence[int], new_tokens: int) -> Times:
    """One answer, timed."""
    began, first, last = time.monotonic(), 0.0, 0.0
    async for event in events(client, "/generate", body(prompt, new_tokens, ignore_eos=True)):
        assert "error" not in event, event
        last = event["at"]
        first = first or last
    return Times(first - began, last - began)


@contextlib.asynccontextmanager
async def decoding(clients: Sequence[httpx.AsyncClient], streams: int) -> AsyncIterator[None]:
    """So many answers are generated through each gateway, one after the other, all the while."""
    begun = [asyncio.Event() for _ in range(streams * len(clients))]

    async def stream(client: httpx.AsyncClient, number: int) -> None:
        while True:
            request = body(prompt_of(BACKGROUND_PROMPT, seed=10_000 + number), 1500, ignore_eos=True)
            async for _ in events(client, "/generate", request):
                begun[number].set()

    tasks = [asyncio.create_task(stream(clients[n % len(clients)], n)) for n in range(len(begun))]
    try:
        for one in begun:
            await asyncio.wait_for(one.wait(), READY_S)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure(given: Any) -> dict[tuple[str, int], dict[str, list[Times]]]:
    """Times by load and prompt's tokens, and by side; the first of each length warms up."""
    found: dict[tuple[str, int], dict[str, list[Times]]] = {}
    options = ["--engine", given.engine, "--unified", "1", "--env", f"gateway:{LIMIT}={NO_LIMIT}"]
    options += [option for one in given.engine_arg for option in ("--engine-arg", one)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        system = await asyncio.to_thread(stack.enter_context, running_system(folder, *options))
        async with (
            pairs_only(system.state.bootstrap) as url,
            httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as pair,
            system.client(120) as unified,
        ):
            await wait_ready(pair)
            clients = {"pair": pair, "unified": unified}
            for load, streams in (("idle", 0), (f"{given.streams} decoding", given.streams)):
                async with decoding([pair, unified], streams):
                    for tokens in given.tokens:
                        found[load, tokens] = await _one_length(clients, tokens, given, seed=streams)
            statuses = await system.statuses()
            assert statuses["unified-0"].rooms_succeeded >= len(given.tokens) * given.repeats
            assert statuses["decode-0"].rooms_succeeded >= len(given.tokens) * given.repeats
    return found


async def wait_ready(client: httpx.AsyncClient) -> None:
    """Returns once a gateway sees workers."""
    async with asyncio.timeout(READY_S):
        while True:
            if (await client.get("/ready")).status_code == 200:
                return
            await asyncio.sleep(0.1)


async def _one_length(
    clients: dict[str, httpx.AsyncClient], tokens: int, given: Any, seed: int
) -> dict[str, list[Times]]:
    times: dict[str, list[Times]] = {side: [] for side in SIDES}
    for number in range(given.repeats + 1):
        prompt = prompt_of(tokens, seed=number + 100 * tokens + 1_000_000 * (seed + 1))
        for side in SIDES[:: 1 if number % 2 else -1]:
            times[side].append(await ask(clients[side], prompt, given.new_tokens))
    return {side: every[1:] for side, every in times.items()}


def line(load: str, tokens: int, times: dict[str, list[Times]]) -> str:
    """One row of the table."""
    cells = [f"| {load} | {tokens} "]
    for place in range(len(Times._fields)):
        pair, unified = ([one[place] for one in times[side]] for side in SIDES)
        low, middle, high = quantiles([mine / other for mine, other in zip(unified, pair, strict=True)], n=4)
        cells.append(f"| {1000 * median(pair):.0f} / {1000 * median(unified):.0f} ")
        cells.append(f"| {middle:.2f} ({low:.2f} to {high:.2f}) ")
    return "".join(cells) + "|"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Up to which prompt a unified worker beats a pair.")
    parser.add_argument("--engine", choices=("sglang", "mock"), default="sglang")
    parser.add_argument("--engine-arg", action="append", default=[])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 128, 256, 512, 1024, 2048])
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=8, help="of each length; at least 2")
    parser.add_argument("--streams", type=int, default=4, help="other answers on each side, the second time")
    given = parser.parse_args()
    found = asyncio.run(measure(given))
    print("| load | prompt | first token, ms: pair / unified | ratio (quartiles) | all, ms | ratio (quartiles) |")
    print("|---|---|---|---|---|---|")
    for (load, tokens), times in found.items():
        print(line(load, tokens, times))
    return 0


if __name__ == "__main__":
    sys.exit(main())
