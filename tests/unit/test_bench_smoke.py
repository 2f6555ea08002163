"""`make bench-smoke` runs every benchmark: a new one without an entry fails here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import smoke
from tandem.cli.__main__ import bench

FOLDER = Path(smoke.__file__).parent


def entries(folder: Path) -> list[smoke.Smoke]:
    """All of them."""
    return list(smoke.smokes("http://127.0.0.1:1", folder))


def test_every_benchmark_has_an_entry(tmp_path: Path) -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - {"smoke"}
    commands = {command.name for command in bench.registered_commands}
    assert {one.name for one in entries(tmp_path)} == files | commands


def test_an_entry_runs_what_it_is_named_after(tmp_path: Path) -> None:
    commands = {one.name: one.command for one in entries(tmp_path)}
    assert commands["fuzz"] == ("-m", "benchmarks.fuzz")
    assert commands["kv"] == ("-m", "tandem.cli", "bench", "kv")


def test_output_is_read_and_not_only_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = (one for one in entries(tmp_path) if one.name == "fuzz")
    ended = {"returncode": 0, "stdout": "problems: 0\n", "stderr": ""}
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), **ended))
    assert smoke.run(one) == ""
    ended["stdout"] = "problems: 3\n"
    assert "said something else" in smoke.run(one)
    ended |= {"stdout": "problems: 0\n", "returncode": 1}
    assert "exit code 1" in smoke.run(one)


def test_what_needs_what_is_not_here_is_tried_by_its_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def note(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "usage", "")

    monkeypatch.setattr(subprocess, "run", note)
    monkeypatch.setattr(smoke, "RDMA_DEVICES", tmp_path / "none")
    (one,) = (one for one in entries(tmp_path) if one.name == "verbs_floor")
    assert one.missing() == "2 verbs devices"
    assert smoke.run(one) == ""
    assert asked == [[sys.executable, "-m", "benchmarks.verbs_floor", "--help"]]
