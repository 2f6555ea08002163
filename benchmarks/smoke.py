"""Whether the benchmarks still work: `make bench-smoke`, `python -m benchmarks.smoke`. Their figures mean nothing.

Each runs with tiny parameters, and its output is read as whoever uses it would. Left out are those that need more than
this machine surely has: `bench post` (a verbs device), `bench pd` (two SGLang systems), `bench gateway`, which has its
own --quick, and what measures for minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tandem.cli.bench_serve.document import from_json
from tests.support.system.system import running_system

TIMEOUT_S: Final = 120.0
TRACE: Final = (
    '{"timestamp": 0, "input_length": 600, "output_length": 4, "hash_ids": [1, 2]}\n'
    '{"timestamp": 50, "input_length": 700, "output_length": 4, "hash_ids": [1, 3]}\n'
)


@dataclass(frozen=True, slots=True)
class Smoke:
    """One benchmark with tiny parameters."""

    words: tuple[str, ...]
    """After `tandem`."""
    check: Callable[[str], bool]
    """Whether what it printed can be used. Raises ValueError, KeyError or TypeError if it can't be read."""


def smokes(url: str, folder: Path) -> Iterator[Smoke]:
    """All of them, in this order: `compare` reads what others wrote. Those of a server ask the one at `url`."""
    pages = ("--page-bytes", "4096", "--total-mib", "2", "--repeats", "1", "--json")
    yield Smoke(("bench", "kv", "--providers", "cma", "tcp", *pages), _kv)
    (folder / "trace.jsonl").write_text(TRACE)
    few = ("--url", url, "--requests", "4", "--rate", "20", "--new-tokens", "4", "--warm-up", "1", "--json")
    for name, more in {
        "a": ("--workload", "random", "--repeats", "2", "--html", str(folder / "a.html")),
        "b": ("--workload", "random", "--repeats", "2"),
        "chat": ("--workload", "chat", "--api", "chat", "--prompt-tokens", "8"),
        "rag": ("--workload", "rag", "--arrivals", "constant"),
        "agent": ("--workload", "agent", "--api", "generate"),
        "trace": ("--trace", str(folder / "trace.jsonl")),
    }.items():
        yield Smoke(("bench", "serve", *few, *more, "--out", str(folder / f"{name}.json")), _all_answered)
    both = (str(folder / "a.json"), str(folder / "b.json"))
    yield Smoke(("bench", "compare", *both, "--json"), lambda out: bool(json.loads(out)["numbers"]))


def _kv(out: str) -> bool:
    rows: list[dict[str, Any]] = json.loads(out)
    return {"cma", "tcp"} <= {row["name"] for row in rows} and all(row["gb_per_s"] > 0 for row in rows)


def _all_answered(out: str) -> bool:
    return all(one["answered"] == one["planned"] > 0 for one in from_json(out, "what it printed").summaries)


def run(smoke: Smoke) -> str:
    """What is wrong; empty if it works."""
    command = [sys.executable, "-m", "tandem.cli", *smoke.words]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"not at its end after {TIMEOUT_S:.0f} s"
    if ended.returncode != 0:
        return f"exit code {ended.returncode}: {ended.stderr[-2000:]}"
    try:
        return "" if smoke.check(ended.stdout) else f"said something else: {ended.stdout[:2000]}"
    except (ValueError, KeyError, TypeError) as error:
        return f"can't be read ({error!r}): {ended.stdout[:2000]}"


def main() -> int:
    """Runs all; the exit code is 1 if one does not work."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        system_folder = Path(folder, "system")
        system_folder.mkdir()
        with running_system(system_folder, "--engine", "mock") as system:
            for smoke in smokes(system.url, Path(folder)):
                began = time.monotonic()
                wrong = run(smoke)
                failed += bool(wrong)
                shown = " ".join(word for word in smoke.words if folder not in word)
                print(f"{wrong or 'ok'}  {time.monotonic() - began:.1f} s  tandem {shown}", flush=True)
        if not Path(folder, "a.html").read_text(encoding="utf-8").startswith("<!doctype html>"):
            failed += 1
            print("the report is no HTML")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
