"""Whether `tandem sim serve` says what a real system does: `python -m benchmarks.sim_agrees`.

A system of one prefill and one decode worker with the mock engine is measured by `tandem calibrate`. Then systems of
several sizes get load from `tandem bench serve`, at several shares of what their prefill workers can do, and `tandem
sim serve` gets the same requests at the same times with the measured costs. Printed is how far the simulated numbers
are from the real ones. All of it are commands of `tandem`, as a user would run them.

The mock's times are those of a model on an accelerator, not its defaults: with steps of a few milliseconds two cores
would be busy with the system itself, whose CPU the simulator does not know. `--engine sglang` takes SGLang with the
tiny model, whose steps are as short as that. So that prefill and decode do not take each other's CPU, as they would not
on machines of their own, prefill keeps to a core, and all else to the others.

Answers are asked of /generate, which says of each token when it came: other APIs bring text, and a token that ends in
the middle of a character has none yet.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from tandem.cli.bench_serve.document import Result, from_json
from tandem.cli.sim_serve.costs import EngineCosts
from tandem.cli.sim_serve.model_file import CostModel, read_model
from tests.support.settings import environment
from tests.support.system.system import System, running_system

NUMBERS: Final = ("ttft_ms.p50", "ttft_ms.p90", "itl_ms.p50", "itl_ms.p90", "tpot_ms.p50", "e2e_ms.p50", "e2e_ms.p90")
GOAL: Final = 0.1
COMMAND_S: Final = 300
CALIBRATED: Final = "1:1"
MOCK_TIMES: Final = ("prefill_us_per_token=400", "decode_us_per_step=40000", "decode_us_per_sequence=400")
KV_TOKENS: Final = {"mock": 65_536, "sglang": 32_768}
SHAPES: Final = {
    "mock": ("--batch-prompts", "1", "--chunk-tokens", "2048"),
    # Of the tiny model, and of SGLang's own defaults on a CPU.
    "sglang": ("--kv-bytes-per-token", "2048", "--max-running", "16", "--chunk-tokens", "2048"),
}
"""What `tandem calibrate` has to be told of an engine."""


@dataclass(frozen=True, slots=True)
class Row:
    """One number of one run."""

    ratio: str
    """Prefill and decode workers."""
    load: float
    """Of what prefill can do."""
    rate: float
    """Requests per second."""
    name: str
    real: float
    simulated: float

    @property
    def error(self) -> float:
        """Of the simulated number, as a share of the real one."""
        return self.simulated / self.real - 1


def tandem(*words: str) -> str:
    """What a command prints. Raises SystemExit if it fails."""
    command = [sys.executable, "-m", "tandem.cli", *words]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=COMMAND_S)
    if ended.returncode:
        raise SystemExit(f"tandem {words[0]} failed: {ended.stderr[-2000:]}")
    return ended.stdout


@contextmanager
def system_of(ratio: str, given: Any) -> Iterator[System]:
    """With the engine as given."""
    arguments = given.engine_arg or (MOCK_TIMES if given.engine == "mock" else ())
    if given.engine == "sglang":
        # SGLang's own choice of a chunk goes by the machine's memory.
        arguments = (f"max_total_tokens={KV_TOKENS[given.engine]}", "chunked_prefill_size=2048", *arguments)
    options = [option for one in arguments for option in ("--engine-arg", one)]
    with (
        tempfile.TemporaryDirectory() as folder,
        running_system(Path(folder), "--engine", given.engine, "--ratio", ratio, *options) as system,
        apart(system) if given.engine == "sglang" else nullcontext(),
    ):
        yield system


@contextmanager
def apart(system: System) -> Iterator[None]:
    """Prefill has the first core; all else the others, and so have the commands that are run meanwhile."""
    cores = os.sched_getaffinity(0)
    first, *others = sorted(cores)
    if not others:
        yield
        return
    for pid, name in system.processes().items():
        for thread in psutil.Process(pid).threads():
            os.sched_setaffinity(thread.id, {first} if name.startswith("prefill") else others)
    os.sched_setaffinity(0, others)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def calibrated(system: System, given: Any, costs: Path) -> CostModel:
    """Of one prefill and one decode worker."""
    longest = 2 * given.prompt_tokens
    lengths = ",".join(str(max(1, longest * part // 16)) for part in (1, 4, 8, 16))
    contexts = f"{max(1, given.prompt_tokens // 8)},{given.prompt_tokens}"
    words = ("--prompts", lengths, "--contexts", contexts, "--batches", given.batches, *SHAPES[given.engine])
    words += ("--repeats", str(given.probes), "--new-tokens", str(given.probe_tokens))
    words += ("--kv-tokens", str(KV_TOKENS[given.engine]))
    print(tandem("calibrate", str(costs), "--url", system.url, *words), flush=True)
    return read_model(costs)


def all_rows(given: Any, costs: Path) -> Iterator[Row]:
    """Of every system; the one that the costs are of comes first, where it is wanted."""
    with system_of(CALIBRATED, given) as system:
        model = calibrated(system, given, costs)
        if CALIBRATED in given.ratios:
            yield from compared(CALIBRATED, system, given, costs, model)
    for ratio in given.ratios:
        if ratio != CALIBRATED:
            with system_of(ratio, given) as system:
                yield from compared(ratio, system, given, costs, model)


def compared(ratio: str, system: System, given: Any, costs: Path, model: CostModel) -> Iterator[Row]:
    """All loads of one system."""
    prefill, decode = ratio.split(":")
    for place, load in enumerate(given.loads):
        rate = round(int(prefill) * load / prompt_s(model.engine, given.prompt_tokens), 3)
        shape = ("--prompt-tokens", given.prompt_tokens, "--new-tokens", given.new_tokens, "--spread", given.spread)
        words = [*map(str, shape), "--rate", str(rate), "--requests", str(given.requests)]
        # Each load has prompts of its own: the real system may have kept those of the one before.
        seed = given.seed + place * given.repeats
        words += ["--repeats", str(given.repeats), "--seed", str(seed), "--json"]
        real = from_json(tandem("bench", "serve", "--url", system.url, "--api", "generate", *words), "the real run")
        sized = ("--prefill", prefill, "--decode", decode, "--costs", str(costs))
        simulated = from_json(tandem("sim", "serve", *sized, *words), "the simulated run")
        for name in NUMBERS:
            yield Row(ratio, load, rate, name, middle(real, name), middle(simulated, name))


def prompt_s(engine: EngineCosts, tokens: int) -> float:
    """That prefill is busy for a prompt."""
    return engine.prefill_us_per_batch * 1e-6 + engine.prompt_s(tokens, 0)


def middle(result: Result, name: str) -> float:
    """The median of the repeats."""
    return median(one[name] for one in result.numbers)


def arguments() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description="tandem sim serve beside a real system.")
    parser.add_argument("--engine", default="mock", choices=list(KV_TOKENS))
    parser.add_argument("--engine-arg", action="append", help=f"of it; the mock's by default: {' '.join(MOCK_TIMES)}")
    parser.add_argument("--ratios", nargs="+", default=["1:1", "2:2"])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.6, 0.9])
    parser.add_argument("--requests", type=int, default=60, help="of each repeat")
    parser.add_argument(
        "--repeats", type=int, default=1, help="of each load, with a seed of its own; the median counts"
    )
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--spread", type=float, default=0.5)
    parser.add_argument("--batches", default="1,4,12", help="of answers, to calibrate by")
    parser.add_argument("--probes", type=int, default=5, help="repeats of each probe")
    parser.add_argument("--probe-tokens", type=int, default=16, help="that answers make together when they are probed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write costs and rows here")
    return parser


def main() -> int:
    """Command line; the exit code is 1 if a number is further off than the goal."""
    given = arguments().parse_args()
    began, rows = time.monotonic(), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        costs = Path(folder, "costs.json")
        for row in all_rows(given, costs):
            if not rows:
                titles = ("workers", "load", "requests/s", "number", "real, ms", "simulated, ms", "error")
                print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
            rows.append(row)
            cells = f"| {row.ratio} | {row.load:.0%} | {row.rate:.2f} | {row.name.replace('_ms', '')} "
            print(f"{cells}| {row.real:.2f} | {row.simulated:.2f} | {row.error:+.1%} |", flush=True)
        model = read_model(costs)
    if given.json:
        document = {"costs": asdict(model), "rows": [asdict(row) | {"error": row.error} for row in rows]}
        given.json.write_text(json.dumps(document, indent=2))
    worst = max(rows, key=lambda row: abs(row.error))
    print(f"at most {abs(worst.error):.1%} off, in {time.monotonic() - began:.0f} s")
    return int(abs(worst.error) > GOAL)


if __name__ == "__main__":
    sys.exit(main())
