"""Runs the tests marked rdma in the RDMA guest, where this machine has no verbs device but can have a guest.

Those tests are then deselected here, and the one marked rdma_guest runs them all inside. Where neither a device nor a
guest is there, all of them are skipped with the reason (tests.support.capabilities).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest

from tests.support.capabilities import has_verbs_device, rdma_guest_missing
from tools.rdma_vm import guest
from tools.rdma_vm.kit import Kit

RUN_TIMEOUT_S: Final = 2400
"""For all tests in the guest together."""
TEST_TIMEOUT_S: Final = 600
"""For each of them: its processor is emulated, and tens of times slower."""
REPORT: Final = "report.xml"

_HANDED_OVER: Final = pytest.StashKey[tuple[str, ...]]()


def hand_over(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes what runs elsewhere out of a collection, and keeps what the guest is to run.

    Without the rdma_guest test in the collection nothing would run the others, so they stay and are skipped.
    """
    inside = [item for item in items if item.get_closest_marker("rdma")]
    runners = [item for item in items if item.get_closest_marker("rdma_guest")]
    elsewhere = runners if has_verbs_device() else inside if runners and rdma_guest_missing() is None else []
    config.stash[_HANDED_OVER] = tuple(item.nodeid for item in inside)
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]


def handed_over(config: pytest.Config) -> tuple[str, ...]:
    """Ids of the tests that the guest is to run."""
    return config.stash[_HANDED_OVER]


def pytest_inside(tests: tuple[str, ...]) -> tuple[str, ...]:
    """The command that runs tests in a guest with a folder for results, and reports there."""
    report = f"--junitxml={guest.RESULTS_INSIDE}/{REPORT}"
    options = ("-p", "no:cacheprovider", "-m", "rdma", f"--timeout={TEST_TIMEOUT_S}", "--durations=10", report)
    return (sys.executable, "-m", "pytest", *options, *tests)


def run_inside(kit: Kit, command: tuple[str, ...], results: Path) -> int:
    """Runs a command in a guest for tests, prints what it prints there, and returns its status."""
    return guest.run(kit, command, guest.Machine(cpus=2, timeout_s=RUN_TIMEOUT_S, results=results))


def passed(results: Path) -> int:
    """How many tests passed in the guest."""
    suites = ElementTree.parse(results / REPORT).getroot().iter("testsuite")
    return sum(
        int(suite.attrib["tests"]) - sum(int(suite.attrib[name]) for name in ("errors", "failures", "skipped"))
        for suite in suites
    )
