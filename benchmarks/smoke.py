"""Whether the benchmarks still work: `make bench-smoke`, `python -m benchmarks.smoke`. Their figures mean nothing.

Every `tandem bench` and every file of this folder runs with tiny parameters, on the mock engine where it can choose,
and what it prints is read as whoever uses it would. Of those that need what this machine has not, only the command line
is tried, and the reason is told. Names after the command choose some: `python -m benchmarks.smoke pd fuzz`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from tandem.cli.bench_serve.document import from_json
from tests.support.browser import CHROMIUM
from tests.support.system.system import running_system

TIMEOUT_S: Final = 300.0
"""Of each, on a machine that does much else; on one that does not, each takes seconds."""
RDMA_DEVICES: Final = Path("/sys/class/infiniband")
TRACE: Final = (
    '{"timestamp": 0, "input_length": 600, "output_length": 4, "hash_ids": [1, 2]}\n'
    '{"timestamp": 50, "input_length": 700, "output_length": 4, "hash_ids": [1, 3]}\n'
)


def _nothing() -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Smoke:
    """One benchmark with tiny parameters."""

    name: str
    """Of a `tandem bench`, or of a file of this folder without its ending."""
    words: tuple[str, ...]
    """Its options."""
    check: Callable[[str], bool]
    """Whether what it printed can be used. Raises ValueError, KeyError or TypeError if it can't be read."""
    missing: Callable[[], str] = _nothing
    """What it needs and this machine has not; empty: nothing."""
    verdict: bool = False
    """Whether exit code 1 says that a goal was missed, which figures that mean nothing may."""

    @property
    def is_file(self) -> bool:
        """Whether it is one of this folder."""
        return Path(__file__).with_name(f"{self.name}.py").is_file()

    @property
    def command(self) -> tuple[str, ...]:
        """Without its options."""
        return ("-m", f"benchmarks.{self.name}") if self.is_file else ("-m", "tandem.cli", "bench", self.name)


def smokes(url: str, folder: Path) -> Iterator[Smoke]:
    """All of them, in this order: `compare` reads what others wrote. Those of a server ask the one at `url`."""
    yield from _of_a_server(url, folder)
    yield from _commands(folder)
    yield from _with_systems(folder)
    yield from _pictures(folder)
    yield from _of_devices()


def _of_a_server(url: str, folder: Path) -> Iterator[Smoke]:
    (folder / "trace.jsonl").write_text(TRACE)
    few = ("--url", url, "--requests", "4", "--rate", "20", "--new-tokens", "4", "--warm-up", "1", "--json")
    page = folder / "a.html"
    for name, more in {
        "a": ("--workload", "random", "--repeats", "2", "--html", str(page)),
        "b": ("--workload", "random", "--repeats", "2"),
        "chat": ("--workload", "chat", "--api", "chat", "--prompt-tokens", "8"),
        "rag": ("--workload", "rag", "--arrivals", "constant"),
        "agent": ("--workload", "agent", "--api", "generate"),
        "trace": ("--trace", str(folder / "trace.jsonl")),
    }.items():
        yield Smoke("serve", (*few, *more, "--out", str(folder / f"{name}.json")), _all_answered)
    both = (str(folder / "a.json"), str(folder / "b.json"))
    yield Smoke(
        *("compare", (*both, "--json")),
        lambda out: bool(json.loads(out)["numbers"]) and page.read_text().startswith("<!doctype html>"),
    )


def _commands(folder: Path) -> Iterator[Smoke]:
    pages = ("--page-bytes", "4096", "--total-mib", "2", "--repeats", "1", "--json")
    yield Smoke("kv", ("--providers", "cma", "tcp", *pages), _kv)
    yield Smoke("post", ("--repeats", "1", "--json"), _post, lambda: _command_missing("cc"))
    few = ("--rounds", "1", "--requests", "1", "--lengths", "32", "--new-tokens", "4")
    arriving = ("--streams", "2", "--stream-tokens", "20", "--arriving", "64", "--per-s", "20")
    yield Smoke("pd", ("--engine", "mock", *few, *arriving, "--json"), _pd)
    figures = folder / "gateway.json"
    yield Smoke(
        *("gateway", ("--quick", "--peers", "--scenarios", "requests", "routing", "--json", str(figures))),
        lambda _: bool(json.loads(figures.read_text())["figures"]),
    )


def _with_systems(folder: Path) -> Iterator[Smoke]:
    mock = ("--engine", "mock")
    tiny = ("--conversations", "2", "--turns", "2", "--start", "64", "--said", "16", "--new-tokens", "4")
    yield Smoke("prefixes", (*mock, *tiny), _says(r"^all turns: .* \d+% saved$"))
    yield Smoke(
        *("checksum_cost", (*mock, "--tokens", "64", "--rounds", "2", "--requests", "1")),
        _says(r"^second token +control .* of without \("),
    )
    yield Smoke("sglang_over_verbs", (*mock, "--provider", "tcp"), _says(r"^all as it should be over tcp$"))
    short = ("--tokens", "32", "--new-tokens", "4", "--repeats", "2", "--streams", "1")
    yield Smoke("unified", (*mock, *short), _says(r"^\| .* \| 32 \| \d+ / \d+ \|"))
    short = ("--tokens", "32", "--rate", "20", "--learn", "2", "--prompts", "3", "--runs", "1")
    yield Smoke("slow_prefill", (*mock, *short), _says(r"^least_cost / least_load, prompt by prompt: [\d.]+ \("))
    quick = ("--engine-arg", "decode_us_per_step=4000", "--ratios", "1:1", "--loads", "0.5", "--requests", "4")
    tiny = ("--prompt-tokens", "64", "--new-tokens", "4", "--batches", "1,2", "--probes", "1")
    yield Smoke("sim_agrees", (*quick, *tiny), _says(r"^at most [\d.]+% off"), verdict=True)
    few = ("--rounds", "2", "--requests", "8", "--clients", "2", "--new-tokens", "2")
    yield Smoke("trace_overhead", few, _says(r"^1 % sampled: .* lost"), verdict=True)
    yield Smoke(
        *("serve_agrees", ("--pairs", "2", "--prompt-tokens", "16", "--new-tokens", "4")),
        *(_says(r"^at most .*% apart$"), lambda: "" if find_spec("sglang") else "SGLang"),
        verdict=True,
    )
    yield Smoke("token_cpu", (), _says("."), lambda: "sglang-router, and minutes to start SGLang twice in")
    yield Smoke(
        *("serve_commands", ("--rounds", "1", "--requests", "3", "--prompt-tokens", "16", "--new-tokens", "4")),
        *(_says(r"^at most .*% apart"), lambda: "" if find_spec("sglang") else "SGLang"),
        verdict=True,
    )
    yield Smoke("pd_peers", (), _says("."), lambda: "SGLang's own PD, and minutes to start it in")
    yield Smoke(
        "planner_waves",
        ("--loads", "0.5", "--phases-s", "20"),
        _says(r"^\| 50% \| 20 \| \d+% \| \d+% \| 0 \| \d+% \| 0 \|$"),
    )
    yield Smoke("role_switch", ("--rounds", "1"), _says(r"^\| live \| 2 \| \d+\.\d+ \|"))
    yield Smoke("fuzz", ("--count", "30"), _says(r"^problems: 0$"))
    cell = ("--providers", "cma", "--victims", "decode-0", "--faults", "SIGKILL", "--moments", "mid-decode")
    yield Smoke("fault_matrix", (*cell, "--logs", str(folder / "cells")), _says(r"^1 cells, 0 with problems"))
    yield Smoke("soak", ("--minutes", "0.1"), _says(r"^\| wrong \| 0 \|$"))
    calm = ("--minutes", "0.02", "--workers", "2", "--burners", "1")
    yield Smoke("lease_soak", calm, _says(r"^false expirations: \d+$"), verdict=True)
    kept = folder / "beside"
    kept.mkdir()
    (kept / "results.jsonl").write_text(json.dumps(["prefill, SIGKILL", "Tandem", *"abc"]) + "\n")
    yield Smoke("sglang_pd_faults", ("--minutes", "0", "--logs", str(kept)), _says(r"^\| struck \| what \| Tandem \|$"))
    yield Smoke("compose_figures", (), _says("."), lambda: "minutes to build images in")


def _pictures(folder: Path) -> Iterator[Smoke]:
    for name, more in {"dashboard_picture": ("--seconds", "1"), "trace_picture": ("--engine", "mock")}.items():
        picture = folder / f"{name}.png"
        yield Smoke(
            *(name, (*more, "--out", str(picture))),
            *(_says(rf"{picture.name}: [1-9]\d* kB$"), lambda: _command_missing(CHROMIUM)),
        )


def _of_devices() -> Iterator[Smoke]:
    two = ("--devices", *_devices()[:2])
    yield Smoke("verbs_floor", (*two, "--writes", "5"), _says(r"^lane +[\d.]+ us"), lambda: _devices_missing(2))
    few = ("--requests", "1000", "--transfers", "200")
    yield Smoke("verbs_leaks", few, _says(r"left behind: nothing$"), lambda: _devices_missing(1))
    one = ("--copy-only", "--repeats", "1", "--pages", "1", "--page-bytes", "4096")
    yield Smoke("verbs_slabs", one, _says(r"^ +1 x +4 KiB .* GB/s$"))


def _devices() -> tuple[str, ...]:
    return tuple(sorted(path.name for path in RDMA_DEVICES.iterdir())) if RDMA_DEVICES.is_dir() else ()


def _devices_missing(wanted: int) -> str:
    return "" if len(_devices()) >= wanted else f"{wanted} verbs device{'s' * (wanted > 1)}"


def _command_missing(name: str) -> str:
    return "" if shutil.which(name) else name


def _says(pattern: str) -> Callable[[str], bool]:
    return lambda out: re.search(pattern, out, re.MULTILINE) is not None


def _kv(out: str) -> bool:
    rows: list[dict[str, Any]] = json.loads(out)
    return {"cma", "tcp"} <= {row["name"] for row in rows} and all(row["gb_per_s"] > 0 for row in rows)


def _post(out: str) -> bool:
    return all(row["ns_per_request"] > 0 for row in json.loads(out))


def _pd(out: str) -> bool:
    found = json.loads(out)
    return len(found["disturbed"]) == 4 and all(row["itl_p99_ms"] > 0 for row in found["disturbed"]) and found["parts"]


def _all_answered(out: str) -> bool:
    return all(one["answered"] == one["planned"] > 0 for one in from_json(out, "what it printed").summaries)


def run(smoke: Smoke) -> str:
    """What is wrong; empty if it works. Where something is missing, only its command line is tried."""
    lacking = bool(smoke.missing())
    words = ("--help",) if lacking else smoke.words
    command = [sys.executable, *smoke.command, *words]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"not at its end after {TIMEOUT_S:.0f} s"
    if ended.returncode not in ((0, 1) if smoke.verdict and not lacking else (0,)):
        return f"exit code {ended.returncode}: {ended.stdout[-1000:]}{ended.stderr[-2000:]}"
    try:
        return "" if lacking or smoke.check(ended.stdout) else f"said something else: {ended.stdout[-2000:]}"
    except (ValueError, KeyError, TypeError) as error:
        return f"can't be read ({error!r}): {ended.stdout[-2000:]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all, or those that are named; the exit code is 1 if one does not work."""
    chosen, failed, began_all = set(sys.argv[1:] if arguments is None else arguments), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        system_folder = Path(folder, "system")
        system_folder.mkdir()
        with running_system(system_folder, "--engine", "mock") as system:
            for smoke in smokes(system.url, Path(folder)):
                if chosen and smoke.name not in chosen:
                    continue
                began = time.monotonic()
                wrong = run(smoke)
                failed += bool(wrong)
                lack = smoke.missing()
                said = wrong or (f"ok, its command line only, the rest needs {lack}" if lack else "ok")
                shown = " ".join(word for word in smoke.words if folder not in word)
                print(f"{smoke.name:<18}{time.monotonic() - began:>6.1f} s  {said}  ({shown})", flush=True)
    print(f"{failed} failed; {time.monotonic() - began_all:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
