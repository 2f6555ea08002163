"""Runs cells one after another; those of the same provider and moment share a system."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path

from tests.support.faults.cells import Cell, Moment
from tests.support.faults.experiment import Experiment, faulty_system
from tests.support.faults.findings import Finding
from tests.support.system.mock_oracle import tiny_oracle


def run_matrix(chosen: Iterable[Cell], folder: Path, say: Callable[[str], None] = print) -> Iterator[Finding]:
    """What each cell brings. Raises AssertionError, or a group of errors, from a cell that could not be carried out.

    folder: for logs. say: told of each finding.
    """
    for (provider, moment), group in groupby(chosen, key=_system_of):
        yield from _run_on_one_system(provider, moment, list(group), folder, say)


def _system_of(cell: Cell) -> tuple[str, Moment]:
    return cell.provider, cell.moment


def _run_on_one_system(
    provider: str, moment: Moment, group: list[Cell], folder: Path, say: Callable[[str], None]
) -> Iterator[Finding]:
    oracle = tiny_oracle()
    place = folder / f"{provider} {moment.value}".replace(" ", "-")
    place.mkdir(parents=True)
    with faulty_system(place, provider, moment) as system:
        for cell in group:
            finding = asyncio.run(Experiment(cell, system, oracle).run())
            say(str(finding))
            for problem in finding.problems:
                say(f"  PROBLEM: {problem}; logs are in {place}")
            yield finding
