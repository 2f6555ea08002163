"""What a token costs between engine and client with real SGLang: `python -m benchmarks.token_cpu`.

The same engine, un-disaggregated, twice: behind SGLang's own HTTP server and sglang-router, and as Tandem's unified
worker behind its gateway. With `--pair` a third time, as a prefill and a decode worker of Tandem. All are up at the
same time and are asked the same streams in turn. Counted is the CPU of each process over the new tokens; the scheduler,
which computes them, apart from the rest. What each side takes when it has nothing to do (heartbeats, mostly) is printed
too: it is part of the figures, and the more of them the slower the engine is. The router comes from
`tandem bench gateway --install`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
import psutil

from benchmarks.sglang_pd.sides import wait_ready
from tandem.cli import settings
from tandem.cli.bench_gateway.peer_venv import SGLANG_ROUTER, missing
from tandem.cli.bench_gateway.processes import cpu_s
from tandem.cli.bench_pd.sides import PLAIN_READY, SideOptions, free_port, plain_command, plain_environment, running
from tandem.cli.plan import LOOPBACK
from tests.support.system.system import MODEL, running_system

ENGINE: Final = "scheduler"
"""The process that computes tokens, on every side."""
PLAIN: Final = "SGLang, sglang-router"
UNIFIED: Final = "Tandem, unified"
PAIR: Final = "Tandem, a pair"
START_TIMEOUT_S: Final = 300.0
IDLE_S: Final = 5.0
MAX_TOTAL_TOKENS: Final = 32_768


@dataclass(frozen=True, slots=True)
class Side:
    """A running system."""

    name: str
    url: str
    model: str
    processes: Callable[[], Mapping[int, str]]
    """Every process that serves it, with what it is."""


@asynccontextmanager
async def tandem_side(name: str, folder: Path, *workers: str) -> AsyncIterator[Side]:
    """`tandem up` with workers of SGLang."""
    await asyncio.to_thread(folder.mkdir)
    options = [
        "--engine",
        "sglang",
        "--device",
        "cpu",
        "--engine-arg",
        f"max_total_tokens={MAX_TOTAL_TOKENS}",
        *workers,
    ]
    env = {"OMP_NUM_THREADS": "1", "TANDEM_TRACE_SAMPLE_RATIO": "0.01"}
    with running_system(folder, *options, env=env, start_timeout_s=START_TIMEOUT_S) as system:

        def processes() -> Mapping[int, str]:
            owned = system.processes()
            return {pid: _part(pid, owner.rstrip("-0123456789")) for pid, owner in owned.items() if owner != "up"}

        yield Side(name, system.url, system.state.model, processes)


@asynccontextmanager
async def plain_side(router_python: str) -> AsyncIterator[Side]:
    """SGLang's server behind its router."""
    options = SideOptions(str(MODEL), 1, MAX_TOTAL_TOKENS)
    server, front, prometheus = free_port(20_000), free_port(24_000), free_port(27_000)
    route = [router_python, "-m", "sglang_router.launch_router", "--host", LOOPBACK, "--port", str(front)]
    route += ["--worker-urls", f"http://{LOOPBACK}:{server}", "--policy", "round_robin", "--log-level", "warn"]
    route += ["--prometheus-host", LOOPBACK, "--prometheus-port", str(prometheus)]
    async with AsyncExitStack() as stack:
        command, env = plain_command(options, server), plain_environment(options)
        engine = await stack.enter_async_context(running(command, env, PLAIN_READY))
        router = await stack.enter_async_context(running(route, settings.inherited(), ""))
        url = f"http://{LOOPBACK}:{front}"
        await wait_ready(url)

        def processes() -> Mapping[int, str]:
            served = {one.pid: _part(one.pid, "server") for one in _family(engine.pid)}
            return {**served, **{one.pid: "router" for one in _family(router.pid)}}

        yield Side(PLAIN, url, str(MODEL), processes)


def _family(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def _part(pid: int, otherwise: str) -> str:
    """What a process does, by the title that SGLang gives it."""
    title = " ".join(psutil.Process(pid).cmdline())
    return next((part for part in (ENGINE, "detokenizer") if f"sglang::{part}" in title), otherwise)


async def stream(client: httpx.AsyncClient, model: str, tokens: int) -> None:
    """One answer of so many tokens, read to its end."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "word " * 8}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    usage: dict[str, Any] = {}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if '"usage":{' in line:
                usage = json.loads(line.removeprefix("data: "))["usage"]
    assert usage.get("completion_tokens") == tokens, usage


async def measured(side: Side, streams: int, tokens: int) -> Mapping[str, float]:
    """Microseconds of CPU per token, by part, of streams at the same time."""
    limits = httpx.Limits(max_connections=streams)
    async with httpx.AsyncClient(base_url=side.url, timeout=START_TIMEOUT_S, trust_env=False, limits=limits) as client:
        parts = side.processes()
        before = {pid: cpu_s([pid]) for pid in parts}
        await asyncio.gather(*(stream(client, side.model, tokens) for _ in range(streams)))
        found: dict[str, float] = {}
        for pid, part in parts.items():
            found[part] = found.get(part, 0) + (cpu_s([pid]) - before[pid]) / (streams * tokens) * 1e6
        return found


async def idle_ms_per_s(side: Side) -> float:
    """CPU that it takes when it is asked nothing, without the scheduler."""
    pids = [pid for pid, part in side.processes().items() if part != ENGINE]
    before = cpu_s(pids)
    await asyncio.sleep(IDLE_S)
    return (cpu_s(pids) - before) / IDLE_S * 1e3


async def compare(given: argparse.Namespace) -> dict[str, list[Mapping[str, float]]]:
    """By side, the rounds."""
    found: dict[str, list[Mapping[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="token-cpu-") as folder:
        async with AsyncExitStack() as stack:
            router = str(settings.bench_peers_folder() / "bin" / "python")
            sides = [await stack.enter_async_context(plain_side(router))]
            unified = tandem_side(UNIFIED, Path(folder, "unified"), "--ratio", "0:0", "--unified", "1")
            sides.append(await stack.enter_async_context(unified))
            if given.pair:
                sides.append(await stack.enter_async_context(tandem_side(PAIR, Path(folder, "pair"), "--ratio", "1:1")))
            for side in sides:
                await measured(side, given.streams, 8)
            for side in sides:
                print(f"{side.name}: {await idle_ms_per_s(side):.1f} ms of CPU per second when idle", flush=True)
            for number in range(given.rounds):
                for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
                    found.setdefault(side.name, []).append(await measured(side, given.streams, given.tokens))
                print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
    return found


def shown(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A table, and the ratio of each side to the first."""
    lines, base = [], 0.0
    for name, rounds in found.items():
        parts = {part: median(one.get(part, 0.0) for one in rounds) for part in rounds[0]}
        sums = [sum(cost for part, cost in one.items() if part != ENGINE) for one in rounds]
        base = base or median(sums)
        rest = ", ".join(f"{part} {cost:.0f}" for part, cost in sorted(parts.items()) if part != ENGINE)
        lines.append(
            f"{name}: {median(sums):.0f} us per token ({min(sums):.0f} to {max(sums):.0f}),"
            f" {median(sums) / base:.2f} x; {rest}; apart from it the {ENGINE} {parts.get(ENGINE, 0):.0f}"
        )
    return "\n".join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=16, help="at the same time")
    parser.add_argument("--tokens", type=int, default=200, help="of each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pair", action="store_true", help="a prefill and a decode worker of Tandem, too")
    parser.add_argument("--json", type=Path, help="write every round here")
    given = parser.parse_args()
    if lack := missing(SGLANG_ROUTER, settings.bench_peers_folder()):
        parser.error(lack)
    found = asyncio.run(compare(given))
    print(shown(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
