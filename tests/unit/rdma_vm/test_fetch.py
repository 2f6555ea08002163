"""Setting up the RDMA guest: once, whole, and by one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tools.rdma_vm import fetch, steps
from tools.rdma_vm.kit import Kit, RdmaVmError

WAIT_S = 30
Program = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Puts a shell script of this name and text before all other programs."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    return put


def test_a_kit_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(fetch, "build", lambda kit: made.append((kit.folder / "vmlinuz").write_text("kernel")))
    first, second = fetch.ensure(tmp_path), fetch.ensure(tmp_path)
    assert first == second == Kit.of(tmp_path)
    assert first.kernel.read_text() == "kernel"
    assert len(made) == 1


def test_what_is_interrupted_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = tmp_path / "building-killed"
    (killed / "layer").mkdir(parents=True)

    def break_off(kit: Kit) -> None:
        kit.kernel.write_text("half")
        raise RdmaVmError("no network")

    monkeypatch.setattr(fetch, "build", break_off)
    with pytest.raises(RdmaVmError, match="no network"):
        fetch.ensure(tmp_path)
    assert not Kit.of(tmp_path).is_set_up()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    monkeypatch.setattr(fetch, "build", lambda kit: kit.kernel.write_text("whole"))
    assert fetch.ensure(tmp_path).kernel.read_text() == "whole"


def test_two_at_the_same_time_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, made = threading.Event(), threading.Event(), []

    def build(kit: Kit) -> None:
        made.append(kit.folder)
        begun.set()
        assert go_on.wait(WAIT_S)

    monkeypatch.setattr(fetch, "build", build)
    monkeypatch.setattr(steps, "say", lambda text: go_on.set() if "another setup" in text else None)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch.ensure, tmp_path)
        assert begun.wait(WAIT_S)
        second = pool.submit(fetch.ensure, tmp_path)
        assert first.result(WAIT_S) == second.result(WAIT_S)
    assert len(made) == 1


def test_a_machine_without_debians_tools_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RdmaVmError, match="no apt-get, dpkg-deb, setpriv"):
        fetch.build(Kit(tmp_path))


def test_a_release_without_the_kernel_is_told(tmp_path: Path, program: Program) -> None:
    program("apt-cache", "echo something else")
    with pytest.raises(RdmaVmError, match=fetch.KERNEL_SERIES):
        fetch.Apt(tmp_path / "apt").kernel_release()


def test_only_what_an_installation_would_bring_is_missing(tmp_path: Path, program: Program) -> None:
    program(
        "apt-get",
        "echo 'Inst libaio1 (0.3 Debian)'; echo 'Inst libc6 [2.36-1] (2.36-2 Debian)'",
    )
    assert fetch.Apt(tmp_path / "apt").missing("qemu-system-x86") == ["libaio1"]


def test_apt_has_lists_of_its_own_and_its_complaint_is_told(tmp_path: Path, program: Program) -> None:
    program("apt-get", 'echo "asked: $*" >&2; exit 100')
    apt = fetch.Apt(tmp_path / "apt")
    with pytest.raises(RdmaVmError, match="status 100") as told:
        apt.update()
    assert f"Dir::State::Lists={tmp_path / 'apt' / 'lists'}" in str(told.value)
    assert "asked: " in str(told.value)
