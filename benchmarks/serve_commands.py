"""Whole runs of `tandem bench serve` and of SGLang's bench_serving, in turns: `python -m benchmarks.serve_commands`.

By default both ask a server that answers at times fixed before: its n-th request of a run gets the n-th plan, whoever
asks. So both measure the same thing, it is known what they should say, and what is left is the tools' own. Plans are
made up (`fixed`), or are the times of a system with SGLang under the same load (`recorded`). With `--server mock` or
`--server sglang` they ask such a system itself, which is never twice the same.

Needs SGLang. Where its optional package `datasets` is missing, an empty one stands in: no data set is loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from aiohttp import web

from benchmarks.sglang_pd.commands import output
from tandem.cli.bench_serve.apis import Asking, body_of
from tandem.cli.bench_serve.choices import Api, WorkloadName
from tandem.cli.bench_serve.client import ask, resolved, target_of
from tandem.cli.bench_serve.document import from_json
from tandem.cli.bench_serve.numbers import LATENCIES, Outcome, Slo, flat, summarize
from tandem.cli.bench_serve.workload import Question, shaped, synthetic
from tests.support.settings import environment, python_path
from tests.support.system.system import MODEL, running_system

LOOPBACK: Final = "127.0.0.1"
VOCABULARY: Final = 1000
MEAN_TTFT_MS: Final = 200.0
MEAN_GAP_MS: Final = 25.0
STATISTICS: Final = {"mean": "mean", "p50": "median", "p90": "p90", "p99": "p99"}
"""Ours, and theirs."""
JUDGED: Final = ("mean", "p50", "p90")
MOST_APART: Final = 0.03
COMMAND_S: Final = 300
MOCK_TIMES: Final = ("--engine-arg", "prefill_us_per_token=100", "--engine-arg", "decode_us_per_step=10000")
SGLANG: Final = ("--engine-arg", "max_total_tokens=32768")
ENGINES: Final = {"recorded": SGLANG, "mock": ("--engine", "mock", *MOCK_TIMES), "sglang": SGLANG}
"""Options of the system that is started for a server."""
Numbers = dict[str, float]
"""By names such as `ttft_ms.p90`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """When the tokens of one answer are sent."""

    after_s: tuple[float, ...]
    """Of each, since the request came."""

    @property
    def outcome(self) -> Outcome:
        """What a client without any delay would see."""
        ms = [1000 * one for one in self.after_s]
        gaps = tuple(float(gap) for gap in np.diff(ms))
        return Outcome(0, 0, self.after_s[-1], len(ms), ttft_ms=ms[0], gaps_ms=gaps, new_tokens=len(ms))


def plans(count: int, tokens: int, seed: int) -> list[Plan]:
    """As uneven as those of a server under load: TTFT is a gamma, gaps are lognormal."""
    dice = np.random.default_rng(seed)
    first = dice.gamma(4, MEAN_TTFT_MS / 4, (count, 1))
    sigma = 0.5
    gaps = MEAN_GAP_MS * dice.lognormal(-(sigma**2) / 2, sigma, (count, tokens - 1))
    return [Plan(tuple(row)) for row in np.cumsum(np.hstack([first, gaps]), axis=1) / 1000]


async def recorded(url: str, given: argparse.Namespace) -> list[Plan]:
    """The answers of a system under the load that both commands send. Raises SystemExit if one failed."""
    target, asking = await resolved(target_of(url, Api.GENERATE)), Asking(Api.GENERATE, "", VOCABULARY)
    shape = shaped(WorkloadName.RANDOM, given.prompt_tokens, given.new_tokens, 0.0)
    dice = np.random.default_rng(given.seed)
    due_s = np.cumsum(dice.exponential(1 / given.rate, given.requests))

    async def one(after_s: float, question: Question) -> Plan:
        await asyncio.sleep(after_s)  # an open loop: this is when it is sent
        answer = await ask(target, body_of(asking, question), COMMAND_S)
        if answer.error:
            raise SystemExit(f"a request failed: {answer.error}")
        return Plan(tuple(np.cumsum([answer.ttft_ms, *answer.gaps_ms]) / 1000))

    return await asyncio.gather(*map(one, due_s, synthetic(shape, given.seed, dice)))


class FixedAnswers:
    """/generate of a server that has a plan for each request of a run."""

    def __init__(self, planned: Sequence[Plan]) -> None:
        self._planned = planned
        self._next = 0

    def begin(self) -> None:
        """Another run: the next request is its first."""
        self._next = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        clock = asyncio.get_running_loop().time
        came_s, plan = clock(), self._planned[self._next]
        self._next += 1
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number, after_s in enumerate(plan.after_s, 1):
            event = {"text": "word", "meta_info": {"prompt_tokens": 1, "completion_tokens": number}}
            end = "data: [DONE]\n\n" if number == len(plan.after_s) else ""
            await asyncio.sleep(max(0.0, came_s + after_s - clock()))
            await response.write(f"data: {json.dumps(event)}\n\n{end}".encode())
        return response


@asynccontextmanager
async def fixed_server(answers: FixedAnswers) -> AsyncIterator[str]:
    """Its URL, while it runs in this process."""
    app = web.Application()
    app.router.add_post("/generate", answers.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, LOOPBACK, 0)
        await site.start()
        yield f"http://{LOOPBACK}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _environment(folder: Path) -> dict[str, str]:
    return environment(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", PYTHONPATH=python_path(folder))


async def ours(url: str, given: argparse.Namespace, seed: int, folder: Path) -> Numbers:
    """One run of `tandem bench serve`."""
    words = ["tandem.cli", "bench", "serve", "--url", url, "--api", "generate", "--json"]
    words += ["--warm-up", "0", "--spread", "0"]
    words += ["--requests", str(given.requests), "--rate", str(given.rate), "--seed", str(seed)]
    words += ["--prompt-tokens", str(given.prompt_tokens), "--new-tokens", str(given.new_tokens)]
    result = from_json(await output(words, _environment(folder), COMMAND_S), "what tandem bench serve printed")
    if result.summaries[0]["answered"] != given.requests:
        raise SystemExit(f"not all were answered: {result.summaries[0]['errors']}")
    return dict(result.numbers[0])


async def theirs(url: str, given: argparse.Namespace, seed: int, folder: Path) -> Numbers:
    """One run of SGLang's, which sends token ids too."""
    kept = folder / f"theirs-{time.monotonic_ns()}.jsonl"
    words = ["sglang.benchmark.serving", "--backend", "sglang", "--base-url", url, "--dataset-name", "random-ids"]
    words += ["--tokenize-prompt", "--model", str(MODEL), "--random-range-ratio", "1"]
    words += ["--random-input-len", str(given.prompt_tokens), "--random-output-len", str(given.new_tokens)]
    words += ["--num-prompts", str(given.requests), "--request-rate", str(given.rate), "--seed", str(seed)]
    words += ["--warmup-requests", "0", "--ready-check-timeout-sec", "0", "--disable-tqdm", "--output-file", str(kept)]
    await output(words, _environment(folder), COMMAND_S)
    found = json.loads(kept.read_text())
    if found["completed"] != given.requests:
        raise SystemExit(f"bench_serving had {found['completed']} answers of {given.requests}")
    names = [(name, name.replace("e2e", "e2e_latency")) for name in LATENCIES]
    return {f"{name}.{mine}": found[f"{other}_{there}"] for name, there in names for mine, other in STATISTICS.items()}


async def measure(
    url: str, given: argparse.Namespace, folder: Path, begin: Callable[[], None]
) -> tuple[list[Numbers], list[Numbers]]:
    """Both commands in every round; who is first changes. begin: called before each. Theirs, then ours."""
    found: dict[str, list[Numbers]] = {"theirs": [], "ours": []}
    for number in range(given.rounds):
        turns = [("theirs", theirs), ("ours", ours)]
        for name, command in turns if number % 2 == 0 else reversed(turns):
            begin()
            found[name].append(await command(url, given, given.seed + number, folder))
        print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
    return found["theirs"], found["ours"]


def table(there: Sequence[Numbers], here: Sequence[Numbers], plan: Numbers | None) -> tuple[str, float]:
    """Medians of the rounds side by side, and how far those that are judged are apart at most."""
    lines = ["| ms | planned | bench_serving | tandem | ratio |", "|---|---|---|---|---|"]
    worst = 0.0
    for name in (f"{latency}.{statistic}" for latency in LATENCIES for statistic in STATISTICS):
        other, mine = (median(one[name] for one in side) for side in (there, here))
        known = f"{plan[name]:.2f}" if plan else ""
        lines.append(f"| {name.replace('_ms.', ' ')} | {known} | {other:.2f} | {mine:.2f} | {mine / other:.3f} |")
        if name.partition(".")[2] in JUDGED:
            worst = max(worst, abs(mine / other - 1))
    return "\n".join(lines), worst


async def beside_plans(given: argparse.Namespace, folder: Path, planned: Sequence[Plan]) -> tuple[str, float]:
    """The table of a server that answers by them."""
    answers = FixedAnswers(planned)
    async with fixed_server(answers) as url:
        found = await measure(url, given, folder, answers.begin)
    return table(*found, flat(summarize([one.outcome for one in planned], Slo())))


def beside(given: argparse.Namespace, folder: Path) -> tuple[str, float]:
    """The table of the server that was chosen."""
    if given.server == "fixed":
        return asyncio.run(beside_plans(given, folder, plans(given.requests, given.new_tokens, given.seed)))
    with running_system(folder, *ENGINES[given.server]) as system:
        if given.server != "recorded":
            return table(*asyncio.run(measure(system.url, given, folder, lambda: None)), None)
        planned = asyncio.run(recorded(system.url, given))
    return asyncio.run(beside_plans(given, folder, planned))


def main() -> int:
    """Command line; returns the exit code: 1 if a mean, median or p90 is more than 3 % apart."""
    parser = argparse.ArgumentParser(description="Whole runs of tandem bench serve beside SGLang's bench_serving.")
    parser.add_argument("--server", default="fixed", choices=["fixed", *ENGINES])
    parser.add_argument("--rounds", type=int, default=3, help="of both commands; the median of each number counts")
    parser.add_argument("--requests", type=int, default=100, help="of each run")
    parser.add_argument("--rate", type=float, default=6.0, help="of them per second")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if find_spec("datasets") is None:
            (folder / "datasets.py").write_text("load_dataset = None\n")
        text, worst = beside(given, folder)
    print(f"{given.rounds} rounds in {time.monotonic() - began:.0f} s\n{text}\nat most {worst:.1%} apart (without p99)")
    return int(worst > MOST_APART)


if __name__ == "__main__":
    sys.exit(main())
