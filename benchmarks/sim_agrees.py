"""Whether `tandem sim serve` says what a real system does: `python -m benchmarks.sim_agrees`.

A system of one prefill and one decode worker with the mock engine is measured by `tandem calibrate`. Then systems of
several sizes get load from `tandem bench serve`, at several shares of what their prefill workers can do, and `tandem
sim serve` gets the same requests at the same times with the measured costs. Printed is how far the simulated numbers
are from the real ones. All of it are commands of `tandem`, as a user would run them.

The engine's times are those of a model on an accelerator, not the mock's defaults: with steps of a few milliseconds two
cores would be busy with the system itself, whose CPU the simulator does not know.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from tandem.cli.bench_serve.document import Result, from_json
from tandem.cli.sim_serve.costs import EngineCosts
from tandem.cli.sim_serve.model_file import CostModel, read_model
from tests.support.settings import environment
from tests.support.system.system import System, running_system

NUMBERS: Final = ("ttft_ms.p50", "ttft_ms.p90", "itl_ms.p50", "itl_ms.p90", "tpot_ms.p50", "e2e_ms.p50", "e2e_ms.p90")
GOAL: Final = 0.1
COMMAND_S: Final = 300


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
    """What a command prints."""
    command = [sys.executable, "-m", "tandem.cli", *words]
    return subprocess.run(
        command, env=environment(), check=True, capture_output=True, text=True, timeout=COMMAND_S
    ).stdout


@contextmanager
def system_of(ratio: str, given: Any) -> Iterator[System]:
    """With the mock engine, as given."""
    options = [option for one in given.engine_arg for option in ("--engine-arg", one)]
    with (
        tempfile.TemporaryDirectory() as folder,
        running_system(Path(folder), "--engine", "mock", "--ratio", ratio, *options) as system,
    ):
        yield system


def calibrated(given: Any, costs: Path) -> CostModel:
    """Of one prefill and one decode worker."""
    with system_of("1:1", given) as system:
        longest = 2 * given.prompt_tokens
        lengths = ",".join(str(max(1, longest * part // 16)) for part in (1, 4, 8, 16))
        contexts = f"{max(1, given.prompt_tokens // 8)},{given.prompt_tokens}"
        words = ("--prompts", lengths, "--contexts", contexts, "--batches", given.batches, "--batch-prompts", "1")
        few = ("--repeats", str(given.probes), "--new-tokens", "16", "--chunk-tokens", "2048", "--kv-tokens", "65536")
        print(tandem("calibrate", str(costs), "--url", system.url, *words, *few), flush=True)
    return read_model(costs)


def compared(ratio: str, given: Any, costs: Path, model: CostModel) -> Iterator[Row]:
    """All loads of one system."""
    prefill, decode = ratio.split(":")
    with system_of(ratio, given) as system:
        for load in given.loads:
            rate = round(int(prefill) * load / prompt_s(model.engine, given.prompt_tokens), 3)
            shape = ("--prompt-tokens", given.prompt_tokens, "--new-tokens", given.new_tokens, "--spread", given.spread)
            words = [*map(str, shape), "--rate", str(rate), "--requests", str(given.requests)]
            words += ["--repeats", str(given.repeats), "--seed", str(given.seed), "--json"]
            real = from_json(tandem("bench", "serve", "--url", system.url, *words), "the real run")
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
    parser = argparse.ArgumentParser(description="tandem sim serve beside a real system of the mock engine.")
    engine = ["prefill_us_per_token=400", "decode_us_per_step=40000", "decode_us_per_sequence=400"]
    parser.add_argument("--engine-arg", action="append", default=None, help=f"of the mock; default: {engine}")
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write costs and rows here")
    parser.set_defaults(usual_engine=engine)
    return parser


def main() -> int:
    """Command line; the exit code is 1 if a number is further off than the goal."""
    given = arguments().parse_args()
    given.engine_arg = given.engine_arg or given.usual_engine
    began, rows = time.monotonic(), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        costs = Path(folder, "costs.json")
        model = calibrated(given, costs)
        print(
            "| workers | load | requests/s | number | real, ms | simulated, ms | error |\n|---|---|---|---|---|---|---|"
        )
        for ratio in given.ratios:
            for row in compared(ratio, given, costs, model):
                rows.append(row)
                cells = f"| {row.ratio} | {row.load:.0%} | {row.rate:.2f} | {row.name.replace('_ms', '')} "
                print(f"{cells}| {row.real:.2f} | {row.simulated:.2f} | {row.error:+.1%} |", flush=True)
    if given.json:
        document = {"costs": asdict(model), "rows": [asdict(row) | {"error": row.error} for row in rows]}
        given.json.write_text(json.dumps(document, indent=2))
    worst = max(rows, key=lambda row: abs(row.error))
    print(f"at most {abs(worst.error):.1%} off, in {time.monotonic() - began:.0f} s")
    return int(abs(worst.error) > GOAL)


if __name__ == "__main__":
    sys.exit(main())
