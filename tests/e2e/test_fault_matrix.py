"""Faults on real processes: the outcome is an answer, another attempt or a clear error, soon, and nothing is left over.

The slice has each victim, each fault and each moment once. The rest is marked `long`: benchmarks/fault_matrix.py runs
it, too, and docs/reliability.md has what it found.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.faults.cells import Cell, Fault, Moment, Victim, cells
from tests.support.faults.matrix import MakeStage, mock_stage, run_matrix
from tests.support.faults.sglang import CELLS, sglang_stage

SLICE = (
    Cell("tcp", Moment.MID_TRANSFER, Victim.PREFILL, Fault.STOP),
    Cell("cma", Moment.MID_DECODE, Victim.DECODE, Fault.KILL),
    Cell("tcp", Moment.BEFORE_GRANT, Victim.GATEWAY, Fault.CUT),
    Cell("cma", Moment.AFTER_COMPLETE, Victim.BOOTSTRAP, Fault.TERM),
)


def check(chosen: Sequence[Cell], folder: Path, make_stage: MakeStage = mock_stage) -> None:
    """Runs cells; none may have a problem."""
    findings = list(run_matrix(chosen, folder, make_stage=make_stage))
    assert not {str(finding): finding.problems for finding in findings if finding.problems}
    assert [finding.cell for finding in findings] == list(chosen)


def test_the_slice_has_everything_once() -> None:
    assert {cell.victim for cell in SLICE} == set(Victim)
    assert {cell.fault for cell in SLICE} == set(Fault)
    assert {cell.moment for cell in SLICE} == set(Moment)


@pytest.mark.parametrize("cell", SLICE, ids=str)
def test_a_cell_of_the_slice(cell: Cell, tmp_path: Path) -> None:
    check([cell], tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize("provider", ["tcp", "cma"])
def test_all_cells_of_a_moment(provider: str, moment: Moment, tmp_path: Path) -> None:
    check(list(cells([provider], [moment])), tmp_path)


# ---------------------------------------------------------------- with SGLang, token for token


@pytest.mark.sglang
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_cell_with_sglang(tmp_path: Path) -> None:
    check([Cell("cma", Moment.MID_TRANSFER, Victim.DECODE, Fault.CUT)], tmp_path, sglang_stage)


@pytest.mark.sglang
@pytest.mark.long
@pytest.mark.timeout(3_000)
def test_all_cells_with_sglang(tmp_path: Path) -> None:
    assert len(CELLS) == 12
    check(CELLS, tmp_path, sglang_stage)
