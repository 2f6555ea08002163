"""`.ci/run` with doubles of make and of apt: what it installs, what it prints, and what is left of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("bash", "cat", "dirname", "env", "grep", "sleep", "timeout")
SUMMARY = "=== 3 passed ==="

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root installs Chromium")


@dataclass(frozen=True, slots=True)
class Machine:
    """A clone, and the only folder in which programs are looked for."""

    clone: Path
    programs: Path

    def double(self, name: str, *lines: str) -> None:
        """A program that notes its arguments and does so and so."""
        path = self.programs / name
        path.write_text("\n".join(["#!/bin/bash", f'echo "{name} $*" >>"{self.clone}/called"', *lines, ""]))
        path.chmod(0o755)

    def called(self) -> list[str]:
        """Doubles that were called, with their arguments."""
        return (self.clone / "called").read_text().splitlines()

    def start(self) -> subprocess.Popen[str]:
        """Runs it."""
        command = ("bash", str(self.clone / ".ci" / "run"))
        env = {"PATH": str(self.programs), "TANDEM_REQUIRE": "sglang"}
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A bare one: tests pass on it, and nothing can be installed."""
    made = Machine(tmp_path / "clone", tmp_path / "bin")
    made.programs.mkdir()
    (made.clone / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", made.clone / ".ci" / "run")
    for name in PROGRAMS:
        found = shutil.which(name)
        assert found is not None, name
        (made.programs / name).symlink_to(found)
    made.double("make", f"echo '{SUMMARY}'")
    return made


TESTS = "make --no-print-directory test"
WHAT = "--no-install-recommends chromium"


def test_chromium_is_installed_before_the_tests_where_there_is_none(machine: Machine) -> None:
    machine.double("apt-get", "echo much; echo more >&2")
    running = machine.start()
    assert (*running.communicate(timeout=60), running.returncode) == (f"{SUMMARY}\n", "", 0)
    update, install, tests = machine.called()
    assert update.endswith(" update")
    assert install.endswith(f" install -y {WHAT}")
    assert tests == TESTS


@pytest.mark.parametrize("has", [("apt-get", "chromium"), ()], ids=["it is there", "there is no apt"])
def test_nothing_is_installed_where_it_need_not_or_cannot_be(machine: Machine, has: tuple[str, ...]) -> None:
    for name in has:
        machine.double(name)
    running = machine.start()
    assert (*running.communicate(timeout=60), running.returncode) == (f"{SUMMARY}\n", "", 0)
    assert machine.called() == [TESTS]


def test_what_can_not_be_installed_is_said_in_a_line_and_the_tests_decide(machine: Machine) -> None:
    machine.double("apt-get", "echo W: much; echo 'E: there is no such package' >&2; exit 100")
    machine.double("make", f"echo '{SUMMARY}'; echo 'make: *** [test] Error 1' >&2; exit 2")
    running = machine.start()
    out, err = running.communicate(timeout=60)
    assert (out, running.returncode) == (f"{SUMMARY}\n", 2)
    assert err == "Chromium could not be installed: E: there is no such package\n"


@pytest.mark.parametrize("busy", ["apt-get", "make"])
def test_whoever_ends_it_ends_what_it_started(machine: Machine, busy: str) -> None:
    here = machine.clone / "here"
    os.mkfifo(here)
    machine.double("apt-get")
    machine.double(busy, f"exec 3>{here}; echo here >&3; exec sleep 600")
    running = machine.start()
    with here.open() as told:
        assert told.readline() == "here\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 130
        assert told.read() == "", "the pipe ends with whoever holds it"
    running.communicate(timeout=60)
