"""Every fault on every process at every moment: `python -m benchmarks.fault_matrix --out docs/reliability.md`.

Real processes with the mock engine, two prefill and two decode workers. All 128 cells over tcp and cma take about a
quarter of an hour. Exit code 0: every cell is as it should be. `--out` writes the tables between the markers of a page.
`--sglang`: twelve cells with real SGLang, over cma, which take about as long.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TypeVar

from tests.support.faults.cells import Fault, Moment, Victim, cells
from tests.support.faults.matrix import mock_stage, run_matrix
from tests.support.faults.sglang import CELLS as SGLANG_CELLS
from tests.support.faults.sglang import sglang_stage
from tests.support.faults.table import tables

Kind = TypeVar("Kind", bound=Enum)


def filled(page: str, body: str, *, name: str, made_by: str) -> str:
    """A page with something else between two of its markers. Raises ValueError if they are missing."""
    begin, end = f"<!-- {name}: made by {made_by} -->", f"<!-- /{name} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the page has no {begin} and {end}")
    return f"{before}{begin}\n{body}\n{end}{after}"


def names(kind: type[Kind]) -> Callable[[str], list[Kind]]:
    """Reads a list such as `SIGKILL,SIGTERM`."""

    def read(text: str) -> list[Kind]:
        return [kind(name) for name in text.split(",")]

    return read


def main() -> int:
    """Reads the arguments, runs the cells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--providers", type=lambda text: text.split(","), default=["tcp", "cma"])
    for kind in (Victim, Fault, Moment):
        allowed = ", ".join(one.value for one in kind)
        parser.add_argument(
            f"--{kind.__name__.lower()}s", type=names(kind), default=list(kind), help=f"comma-separated: {allowed}"
        )
    parser.add_argument("--sglang", action="store_true", help="twelve cells with SGLang in place of the mock engine")
    parser.add_argument("--out", type=Path, help="page to write the tables to")
    parser.add_argument("--logs", type=Path, help="where logs go; default: a new folder")
    given = parser.parse_args()
    folder = given.logs or Path(tempfile.mkdtemp(prefix="tandem-faults-"))
    chosen = list(cells(given.providers, given.moments, given.victims, given.faults))
    make_stage, name = mock_stage, "faults"
    if given.sglang:
        chosen, make_stage, name = [cell for cell in SGLANG_CELLS if cell in chosen], sglang_stage, "faults-sglang"
    findings = list(run_matrix(chosen, folder, lambda text: print(text, flush=True), make_stage))
    if given.out:
        page = given.out.read_text(encoding="utf-8")
        text = filled(page, tables(findings), name=name, made_by="benchmarks/fault_matrix.py")
        given.out.write_text(text, encoding="utf-8")
    problems = sum(bool(finding.problems) for finding in findings)
    print(f"{len(findings)} cells, {problems} with problems; logs are in {folder}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
