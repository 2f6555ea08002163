"""Runs cells one after another; those of the same provider and moment share a system."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Final

from tests.support.faults.cells import Cell, Moment
from tests.support.faults.experiment import Experiment, Stage
from tests.support.faults.findings import Finding
from tests.support.faults.load import draw
from tests.support.faults.moments import ARRANGEMENTS
from tests.support.system.mock_oracle import tiny_oracle
from tests.support.system.system import running_system

BOUND_S: Final = 3.0
"""From the fault to the last outcome."""
WHOLE_TIMEOUT_S: Final = 40.0

MakeStage = Callable[[Path, str, Moment], AbstractContextManager[Stage]]
"""Takes a folder for logs, a provider, and a moment."""


@contextmanager
def mock_stage(
    folder: Path,
    provider: str,
    moment: Moment,
    *options: str,
    bound_s: float = BOUND_S,
    whole_timeout_s: float = WHOLE_TIMEOUT_S,
) -> Iterator[Stage]:
    """With the mock engine, whose answers an oracle foretells. options: more of them for `tandem up`."""
    oracle, dice, arrangement = tiny_oracle(), random.Random(f"{provider} {moment}"), ARRANGEMENTS[moment]
    shape = ("--engine", "mock", "--ratio", "2:2", "--provider", provider)
    with running_system(folder, *shape, *arrangement.options, *options, start_timeout_s=2 * whole_timeout_s) as system:
        yield Stage(
            system,
            arrangement,
            lambda new_tokens, stream: draw(dice, oracle, new_tokens, stream=stream),
            bound_s=bound_s,
            silence_bound_s=bound_s,
            whole_timeout_s=whole_timeout_s,
        )


def run_matrix(
    chosen: Iterable[Cell], folder: Path, say: Callable[[str], None] = print, make_stage: MakeStage = mock_stage
) -> Iterator[Finding]:
    """What each cell brings. Raises AssertionError, or a group of errors, from a cell that could not be carried out.

    folder: for logs. say: told of each finding.
    """
    for (provider, moment), group in groupby(chosen, key=_stage_of):
        place = folder / f"{provider} {moment.value}".replace(" ", "-")
        place.mkdir(parents=True)
        with make_stage(place, provider, moment) as stage:
            for cell in group:
                finding = asyncio.run(Experiment(cell, stage).run())
                say(str(finding))
                for problem in finding.problems:
                    say(f"  PROBLEM: {problem}; logs are in {place}")
                yield finding


def _stage_of(cell: Cell) -> tuple[str, Moment]:
    return cell.provider, cell.moment
