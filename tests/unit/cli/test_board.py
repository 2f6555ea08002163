"""The rows of a running system and the state file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tandem.cli.board import Board, Row, Stage, read_state
from tandem.cli.plan import Machine, UpOptions, make_plan
from tandem.core.errors import TandemError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of the state file, in a folder that is not there yet."""
    return tmp_path / "run" / "up.json"


@pytest.fixture
def board(path: Path, laptop: Machine) -> Board:
    """Of one prefill and one decode worker."""
    return Board(make_plan(UpOptions(), laptop, {}).processes, "tiny", path)


def test_the_state_file_says_what_the_board_says(board: Board, path: Path) -> None:
    board.set("bootstrap", stage=Stage.LISTENING, pid=7, address="127.0.0.1:1")
    board.set("gateway", stage=Stage.LISTENING, pid=8, address="127.0.0.1:2")
    board.admin, board.url = "127.0.0.1:3", "https://127.0.0.1:2"
    board.set_ready(True)
    state = read_state(path)
    assert state == board.state
    assert (state.url, state.admin, state.bootstrap) == ("https://127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:1")
    assert state.row("bootstrap").stage is Stage.READY
    assert state.row("decode-0").stage is Stage.WAITING


def test_watchers_hear_of_each_change_once(board: Board) -> None:
    heard: list[Row] = []
    board.watch(heard.append)
    board.set("decode-0", stage=Stage.STARTING)
    board.set("decode-0", stage=Stage.STARTING)
    assert [(row.name, row.stage) for row in heard] == [("decode-0", Stage.STARTING)]


def test_a_worker_that_registers_with_a_ready_system_is_ready(board: Board) -> None:
    board.set_ready(True)
    board.set("decode-0", stage=Stage.REGISTERED)
    assert board.row("decode-0").stage is Stage.READY
    board.set("decode-0", stage=Stage.RESTARTING)
    assert board.row("decode-0").stage is Stage.RESTARTING


def test_the_state_file_goes_with_its_owner(board: Board, path: Path) -> None:
    board.set("gateway", pid=1)
    assert path.exists()
    board.forget()
    assert not path.exists()


def test_a_state_file_of_another_process_stays(board: Board, path: Path) -> None:
    board.set("gateway", pid=1)
    path.write_text(path.read_text().replace(f'"pid": {board.state.pid},', '"pid": 1,', 1))
    board.forget()
    assert path.exists()


def test_no_state_file_is_explained(path: Path) -> None:
    with pytest.raises(TandemError, match="tandem up"):
        read_state(path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"processes": [{}]}'])
def test_a_broken_state_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(TandemError, match="not a state file"):
        read_state(path)
