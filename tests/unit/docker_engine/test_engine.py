"""Starting and ending an engine, with a double of dockerd that tells its supervisor what a real one tells."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tools.docker_engine import engine, install
from tools.docker_engine.network import Network
from tools.docker_engine.programs import DockerEngineError
from tools.docker_engine.settings import environment

READY = """
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as news:
    news.connect(os.environ["NOTIFY_SOCKET"])
    news.send(b"READY=1\\nSTATUS=up")
while True:
    signal.pause()
"""
DEAF = READY.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")
BROKEN = "print('no such storage driver'); raise SystemExit(1)"
MUTE = "import signal; signal.pause()"


class Machine:
    """Where programs are doubles, and what they were called for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = folder / "kept"
        self.restored: list[Network] = []
        self.installed = 0
        self.engines = [False]
        """What `answers` says, the last for good."""
        self._programs = folder / "programs"
        self._programs.mkdir()
        (folder / "run").mkdir()
        monkeypatch.setenv("PATH", f"{self._programs}:{environment()['PATH']}")
        monkeypatch.setattr(engine, "_RUN", folder / "run")
        monkeypatch.setattr(engine, "answers", lambda: self.engines.pop(0) if self.engines[1:] else self.engines[0])
        monkeypatch.setattr(install, "install", self._install)
        before = Network(frozenset({"lo"}), False, {})
        monkeypatch.setattr(Network, "now", classmethod(lambda cls: before))
        monkeypatch.setattr(Network, "restore", lambda network: self.restored.append(network))

    def dockerd(self, text: str) -> None:
        """Puts a program of this name before all others."""
        path = self._programs / "dockerd"
        path.write_text(f"#!{sys.executable}\n{text}", encoding="utf-8")
        path.chmod(0o755)

    def _install(self) -> None:
        self.installed += 1


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Without an engine."""
    return Machine(tmp_path, monkeypatch)


def test_an_engine_that_answers_is_used(machine: Machine) -> None:
    machine.engines = [True]
    assert engine.ensure(machine.directory) is None
    assert machine.installed == 0
    assert not engine.stop(machine.directory)


def test_it_is_installed_started_and_ended(machine: Machine) -> None:
    machine.dockerd(READY)
    machine.engines = [False, False, True]
    started = engine.ensure(machine.directory)
    assert started is not None
    assert machine.installed == 1
    assert started == engine.Started.read(machine.directory)
    assert started.runs()
    assert engine.stop(machine.directory)
    assert not started.runs()
    assert machine.restored == [started.network]
    assert not Path(started.run).exists()
    assert not engine.stop(machine.directory)


def test_one_that_does_not_start_is_told_with_what_it_said(machine: Machine) -> None:
    machine.dockerd(BROKEN)
    with pytest.raises(DockerEngineError, match=r"ended as it started(?s:.)*no such storage driver"):
        engine.ensure(machine.directory)
    assert engine.Started.read(machine.directory) is None
    assert len(machine.restored) == 1


def test_one_that_is_never_ready_is_ended(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.dockerd(MUTE)
    monkeypatch.setattr(engine, "START_TIMEOUT_S", 0.5)
    with pytest.raises(DockerEngineError, match="was not ready"):
        engine.ensure(machine.directory)
    assert len(machine.restored) == 1


def test_one_that_does_not_end_is_killed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.dockerd(DEAF)
    machine.engines = [False, False, True]
    started = engine.ensure(machine.directory)
    assert started is not None
    monkeypatch.setattr(engine, "STOP_TIMEOUT_S", 0.2)
    assert engine.stop(machine.directory)
    assert not started.runs()


def test_only_what_tests_left_is_ended_if_that_is_asked(machine: Machine) -> None:
    machine.dockerd(READY)
    machine.engines = [False, False, True]
    started = engine.ensure(machine.directory, with_me=True)
    assert started is not None
    assert not engine.stop(machine.directory, only_left=True)
    assert started.runs()
    gone = replace(started, owner_born=started.owner_born - 1)
    gone.write(machine.directory)
    assert engine.stop(machine.directory, only_left=True)
    assert not started.runs()


def test_another_process_with_its_number_is_left_alone(machine: Machine) -> None:
    network = Network(frozenset(), True, {"iptables": "DROP"})
    machine.directory.mkdir()
    me = os.getpid()
    engine.Started(me, engine.born(me) - 1, str(machine.directory / "run"), network).write(machine.directory)
    assert engine.stop(machine.directory)
    assert machine.restored == [network]


def test_what_a_killed_one_left_is_undone_before_the_next(machine: Machine) -> None:
    machine.directory.mkdir()
    run = machine.directory / "old"
    run.mkdir()
    network = Network(frozenset({"lo", "eth0"}), True, {"iptables": "DROP"})
    engine.Started(2**22 + 1, 7, str(run), network).write(machine.directory)
    machine.dockerd(READY)
    machine.engines = [False, False, True]
    assert engine.ensure(machine.directory) is not None
    assert machine.restored == [network]
    assert not run.exists()
    assert engine.stop(machine.directory)
