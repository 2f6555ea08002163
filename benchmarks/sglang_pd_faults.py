"""SGLang's own PD and Tandem under the same faults: `python -m benchmarks.sglang_pd_faults --out docs/reliability.md`.

Real processes on the CPU with the tiny model, two prefill and two decode workers on every side. SGLang's servers stand
behind sglang-router, over NIXL and over Mooncake's TCP; what these need is installed into an environment of its own in
the user's cache. A cell takes up to three minutes. Results are told as they fall; the exit code says only whether they
were had.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Final

from benchmarks.sglang_pd.cells import BLOWS, Blow, kept, read_rows, table
from benchmarks.sglang_pd.experiment import PROMPTS, Known, strike
from benchmarks.sglang_pd.peer_venv import IMPORTS, PACKAGES, missing, peer_python
from benchmarks.sglang_pd.sides import TANDEM, Side, peer_environment, sglang, tandem
from tests.support.system.reference import References

BEGIN: Final = "<!-- beside: made by benchmarks/sglang_pd_faults.py -->"
END: Final = "<!-- /beside -->"
PROMPT_TOKENS: Final = 128
NEW_TOKENS: Final = 400


class Sides:
    """Starts each side when it is wanted, one at a time."""

    def __init__(self, folder: Path, python: str, libraries: str) -> None:
        self._folder = folder
        self._python = python
        self._env = peer_environment(libraries)
        self._number = count()

    def names(self) -> list[str]:
        """Those that can be started; says why others cannot."""
        found = [TANDEM]
        for backend in IMPORTS:
            if why := missing(self._python, backend, self._env):
                print(f"SGLang over {backend} is left out: {why}", flush=True)
            else:
                found.append(f"SGLang, {backend}")
        return found

    def start(self, name: str) -> AbstractAsyncContextManager[Side]:
        """One of them."""
        place = Path(tempfile.mkdtemp(prefix=f"{next(self._number):02}-{name.split()[-1]}-", dir=self._folder))
        return tandem(place) if name == TANDEM else sglang(place, name.split()[-1], self._python, self._env)


def known_answers(folder: Path) -> Known:
    """Prompts, and what SGLang answers to them without disaggregation; kept in the folder for the next run."""
    dice = random.Random(0)
    prompts = [[dice.randrange(3, 1000) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
    kept_answers = folder / "answers.json"
    if not kept_answers.exists():
        kept_answers.write_text(json.dumps(References(folder, prompts, NEW_TOKENS).answers()))
    return list(zip(prompts, json.loads(kept_answers.read_text()), strict=True))


async def run_side(sides: Sides, name: str, blows: Sequence[Blow], known: Known, stop_at: float, results: Path) -> None:
    """Adds what each fault brings on one side to a file; a system that does not come back is started anew.

    stop_at: monotonic seconds after which no cell begins.
    """
    async with AsyncExitStack() as stack:
        side: Side | None = None
        for blow in blows:
            if time.monotonic() > stop_at:
                break
            if side is None:
                side = await stack.enter_async_context(sides.start(name))
            result = await strike(side, name, blow, known)
            print(f"{name}; {blow}: {'; '.join(result.rows)}", flush=True)
            with results.open("a") as file:
                file.write(kept(result) + "\n")
            if result.back.all_s is None:
                await stack.aclose()
                side = None


def filled(page: str, body: str) -> str:
    """A page with something else between its markers. Raises ValueError if they are missing."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{body}\n{END}{after}"


def versions() -> str:
    """One line."""
    return f"SGLang {version('sglang')}, torch {version('torch')}, {', '.join(PACKAGES).replace('==', ' ')}"


def main() -> int:
    """Reads the arguments, runs the cells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--faults", type=lambda text: text.split(","), default=list(BLOWS), help=", ".join(BLOWS))
    parser.add_argument("--sides", type=lambda text: text.split(";"), help="semicolon-separated; default: all")
    parser.add_argument("--pip-arg", action="append", default=[], help="for installing the peers; repeatable")
    parser.add_argument("--libraries", default="", help="folders of libibverbs and its kin, if they are not installed")
    parser.add_argument("--minutes", type=float, default=90, help="no cell begins after that; 0 only writes the table")
    parser.add_argument("--out", type=Path, help="page to write the table to")
    parser.add_argument("--logs", type=Path, help="where logs and results go, to those there; default: a new folder")
    given = parser.parse_args()
    stop_at = time.monotonic() + given.minutes * 60
    folder = given.logs or Path(tempfile.mkdtemp(prefix="tandem-beside-"))
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    results.touch()
    if given.minutes > 0:
        sides = Sides(folder, peer_python(given.pip_arg), given.libraries)
        known = known_answers(folder)
        for name in given.sides or sides.names():
            asyncio.run(run_side(sides, name, [BLOWS[fault] for fault in given.faults], known, stop_at, results))
    found = read_rows(results.read_text().splitlines())
    body = f"{table(found)}\n\n{time.strftime('%Y-%m-%d')}; {versions()}"
    print(body)
    if given.out:
        given.out.write_text(filled(given.out.read_text(encoding="utf-8"), body), encoding="utf-8")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
