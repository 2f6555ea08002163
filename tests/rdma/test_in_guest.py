"""The tests on verbs devices, on a machine without one: run in the RDMA guest, as one test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.rdma_guest import RUN_TIMEOUT_S, handed_over, passed, pytest_inside, run_inside
from tools.rdma_vm import fetch
from tools.rdma_vm.settings import default_directory

SETUP_TIMEOUT_S = 1800


@pytest.mark.rdma_guest
@pytest.mark.timeout(SETUP_TIMEOUT_S + RUN_TIMEOUT_S + 60)
def test_rdma_tests_pass_in_the_guest(
    pytestconfig: pytest.Config, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tests = handed_over(pytestconfig)
    assert tests, 'no test marked rdma is part of this run; try: pytest -m "rdma or rdma_guest"'
    with capfd.disabled():
        print(f"\n--- {len(tests)} tests in the RDMA guest", flush=True)
        status = run_inside(fetch.ensure(default_directory()), pytest_inside(tests), tmp_path)
        print("--- back from the RDMA guest", flush=True)
    assert status == 0
    assert passed(tmp_path) > 0, "every test was skipped in the guest"
