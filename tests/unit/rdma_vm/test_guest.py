"""What starts a guest, with a shell script in the place of qemu: statuses, output, environment, and its end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.settings import environment
from tools.rdma_vm import guest
from tools.rdma_vm.kit import Kit
from tools.rdma_vm.settings import default_directory

WAIT_S = 30
FIND_JOB = 'job=$(printf "%s\\n" "$@" | sed -n "s/^local,id=job,path=\\([^,]*\\),.*/\\1/p")'
RUN_COMMAND = 'bash "$job/command.sh"; echo $? >"$job/status"'
HANG = "echo $$; exec sleep 1000"


def kit_of(directory: Path, emulator: str) -> Kit:
    """A kit below `directory` whose emulator is a shell script; it knows the job's folder as $job."""
    kit = Kit.of(directory)
    program = kit.emulator_root / "usr/bin/qemu-system-x86_64"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/bash\n{FIND_JOB}\n{emulator}\n")
    program.chmod(0o755)
    return kit


def test_output_and_status_are_the_commands(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kit = kit_of(tmp_path, RUN_COMMAND)
    assert guest.run(kit, ("bash", "-c", 'echo "$1"; echo bad >&2; exit 7', "-", "it's  here"), guest.Machine()) == 7
    printed = capfd.readouterr()
    assert printed.out == "it's  here\n"
    assert printed.err == "bad\n"


def test_the_command_sees_folder_and_environment(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TANDEM_REQUIRE", "rdma, $HOME")
    monkeypatch.setenv("SECRET", "not passed on")
    kit = kit_of(tmp_path, f"unset SECRET TANDEM_REQUIRE; cd /; {RUN_COMMAND}")
    shown = 'echo "$PWD|$TANDEM_REQUIRE|$SECRET|$TANDEM_RDMA_VM_RESULTS|${PATH##*:}"'
    assert guest.run(kit, ("bash", "-c", shown), guest.Machine(results=tmp_path)) == 0
    assert capfd.readouterr().out == f"{folder}|rdma, $HOME||/results|/bin\n"


def test_the_machine_is_the_one_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kit = kit_of(tmp_path, 'echo 0 >"$job/status"; ls "$job"; printf "%s\\n" "$@"')
    node = guest.Node(2, tmp_path / "cable")
    machine = guest.Machine(memory_mib=777, cpus=3, results=tmp_path / "with,comma", node=node)
    assert guest.run(kit, ("true",), machine) == 0
    lines = capfd.readouterr().out.splitlines()
    assert {"boot.sh", "command.sh", "node", "with-results", "777", "3", str(kit.kernel), str(kit.initrd)} <= set(lines)
    assert f"local,id=results,path={tmp_path}/with,,comma,security_model=none,readonly=off" in lines
    assert "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap" in lines
    cable = f"local.path={tmp_path}/cable/2,remote.type=unix,remote.path={tmp_path}/cable/1"
    assert any(cable in line for line in lines)


def test_a_guest_without_status_shows_its_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kit = kit_of(tmp_path, 'echo "Kernel panic" >"$job/console.log"')
    assert guest.run(kit, ("true",), guest.Machine()) == guest.STATUS_NONE
    assert "Kernel panic\nrdma_vm: the guest gave no status" in capfd.readouterr().err


def test_a_guest_ends_with_its_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kit = kit_of(tmp_path, HANG)
    assert guest.run(kit, ("true",), guest.Machine(timeout_s=0.5)) == guest.STATUS_TIMED_OUT
    printed = capfd.readouterr()
    assert not psutil.pid_exists(int(printed.out))
    assert "ended after 0.5 s" in printed.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_guest_ends_with_the_tool(tmp_path: Path, number: signal.Signals) -> None:
    kit_of(tmp_path, HANG)
    command = (sys.executable, "-m", "tools.rdma_vm", "--dir", str(tmp_path), "run", "--", "true")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tool:
        assert tool.stdout is not None
        emulator = psutil.Process(int(tool.stdout.readline()))
        tool.send_signal(number)
        ended = tool.wait(WAIT_S)
        assert ended == (-number if number == signal.SIGKILL else 128 + number)
        emulator.wait(WAIT_S)


def test_nothing_runs_before_it_is_set_up(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "tools.rdma_vm", "run", "--", "true")
    variables = environment(TANDEM_RDMA_VM_DIR=str(tmp_path))
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 2
    assert "run: python -m tools.rdma_vm setup" in done.stderr


def test_the_folder_is_the_chosen_one_or_one_of_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TANDEM_RDMA_VM_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/a/cache")
    assert default_directory() == Path("/a/cache/tandem/rdma-vm")
    monkeypatch.setenv("TANDEM_RDMA_VM_DIR", "/chosen")
    assert default_directory() == Path("/chosen")
