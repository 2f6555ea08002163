"""Sizes of the images, and how long they take to build and to start: `python -m benchmarks.compose_figures`.

Real builds and a real start, in a project of its own that is removed afterwards, of the profile mock, and with --sglang
of SGLang on the CPU. `--out docs/compose.md` writes the table between the markers of that page. Needs a Docker engine,
such as `python -m tools.docker_engine ensure` gives.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx

from benchmarks.fault_matrix import filled
from tests.support.docker.stack import TAG, Stack, running
from tests.support.docker.wheels import torch_wheel

NAME, MADE_BY = "figures", "benchmarks/compose_figures.py"
PROMPT = {"text": "Once upon a time", "sampling_params": {"temperature": 0, "max_new_tokens": 8}}


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one profile."""

    profile: str
    image_bytes: dict[str, int]
    cached_s: float
    """Build of all its images, where nothing has changed."""
    up_s: float
    """Of `docker compose up -d --wait`: from nothing until everything is healthy."""
    answer_s: float
    """From then to the end of the first answer."""


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def ask(stack: Stack) -> None:
    """One short answer."""
    response = httpx.post(f"{stack.gateways()[0]}/generate", json=PROMPT, timeout=60, trust_env=False)
    response.raise_for_status()


def measure(profile: str, wheels: str) -> Figures:
    """Builds, starts, asks, and removes."""
    stack = Stack(profile, WHEELS_DIR=wheels)
    stack.build()
    cached_s = timed(stack.build)
    names = {one.rpartition(":")[0] for one in stack.compose("config", "--images").split()}
    sizes = {name: int(stack.docker.images.get(f"{name}:{TAG}").attrs["Size"]) for name in sorted(names)}
    begin = time.monotonic()
    with running(stack):
        up_s = time.monotonic() - begin
        answer_s = timed(lambda: ask(stack))
    return Figures(profile, sizes, cached_s, up_s, answer_s)


def table(found: list[Figures]) -> str:
    """For the page."""
    images = {name: size for one in found for name, size in one.image_bytes.items()}
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, on an image of the machine's own Python.",
        "",
        "| profile | build, all cached | `up --wait` | first answer |",
        "|---|---|---|---|",
        *(f"| `{one.profile}` | {one.cached_s:.1f} s | {one.up_s:.0f} s | {one.answer_s:.2f} s |" for one in found),
        "",
        "| image | MB |",
        "|---|---|",
        *(f"| `{name}` | {size / 1e6:.0f} |" for name, size in sorted(images.items())),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures, and prints the table or writes it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sglang", action="store_true", help="the profile sglang-cpu too")
    parser.add_argument("--out", type=Path, help="page to write the table to")
    given = parser.parse_args()
    found = [measure("mock", "./requirements")]
    if given.sglang:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure("sglang-cpu", str(torch_wheel(Path(folder)))))
    if given.out:
        page = given.out.read_text(encoding="utf-8")
        given.out.write_text(filled(page, table(found), name=NAME, made_by=MADE_BY), encoding="utf-8")
    else:
        print(table(found))


if __name__ == "__main__":
    main()
