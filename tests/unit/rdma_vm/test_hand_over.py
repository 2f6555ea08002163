"""Which tests run here and which in the RDMA guest, by what this machine has."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import capabilities, rdma_guest
from tools.rdma_vm.kit import Kit

INSIDE, RUNNER, OTHER = "rdma", "rdma_guest", "docker"


@dataclass(eq=False)
class Item:
    """A collected test with one marker."""

    marker: str
    nodeid: str = field(init=False)

    def __post_init__(self) -> None:
        """Named after its marker."""
        self.nodeid = f"tests/test_{self.marker}.py::test"

    def get_closest_marker(self, name: str) -> str | None:
        """As a test of pytest does."""
        return name if name == self.marker else None


def split(*markers: str) -> tuple[list[str], list[str], tuple[str, ...]]:
    """What stays, what is deselected, and what the guest would run, of tests with these markers."""
    deselected: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: deselected.extend(items))
    config: Any = SimpleNamespace(stash=pytest.Stash(), hook=hook)
    items: list[Any] = [Item(marker) for marker in markers]
    rdma_guest.hand_over(config, items)
    return [item.marker for item in items], [item.marker for item in deselected], rdma_guest.handed_over(config)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No device, no guest, nothing required."""
    monkeypatch.setenv("TANDEM_RDMA_VM_DIR", str(tmp_path))
    monkeypatch.delenv("TANDEM_REQUIRE", raising=False)
    monkeypatch.setattr(capabilities, "DEVICES", tmp_path / "infiniband")


def test_with_a_device_they_run_here(tmp_path: Path) -> None:
    (tmp_path / "infiniband" / "mlx5_0").mkdir(parents=True)
    assert split(INSIDE, RUNNER, OTHER)[:2] == ([INSIDE, OTHER], [RUNNER])
    assert capabilities.rdma_missing() is None


def test_with_a_guest_one_test_runs_the_others(tmp_path: Path) -> None:
    Kit.of(tmp_path).folder.mkdir()
    assert split(INSIDE, RUNNER, OTHER) == ([RUNNER, OTHER], [INSIDE], (Item(INSIDE).nodeid,))
    assert capabilities.rdma_guest_missing() is None


def test_a_guest_that_must_be_there_is_set_up_by_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_REQUIRE", "sglang,rdma")
    assert split(INSIDE, RUNNER)[:2] == ([RUNNER], [INSIDE])
    assert capabilities.rdma_guest_missing() is None


def test_with_neither_all_are_skipped_with_the_reason() -> None:
    assert split(INSIDE, RUNNER)[:2] == ([INSIDE, RUNNER], [])
    assert "make test-rdma" in str(capabilities.rdma_missing())
    assert "make test-rdma" in str(capabilities.rdma_guest_missing())


def test_without_the_test_that_starts_the_guest_the_others_stay(tmp_path: Path) -> None:
    Kit.of(tmp_path).folder.mkdir()
    assert split(INSIDE, OTHER)[:2] == ([INSIDE, OTHER], [])
    assert "make test-rdma" in str(capabilities.rdma_missing())


def test_what_passed_is_counted_without_skips_and_failures(tmp_path: Path) -> None:
    counts = '<testsuites><testsuite tests="9" errors="1" failures="2" skipped="3"/></testsuites>'
    (tmp_path / rdma_guest.REPORT).write_text(counts)
    assert rdma_guest.passed(tmp_path) == 3
