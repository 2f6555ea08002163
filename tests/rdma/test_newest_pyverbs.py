"""The newest pyverbs on PyPI, built with its rdma-core and tried in the RDMA guest, where else Debian's is."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.support.rdma_guest import RUN_TIMEOUT_S, passed, pytest_inside, run_inside
from tools.rdma_vm import fetch, guest, newest
from tools.rdma_vm.settings import default_directory

BUILD_TIMEOUT_S = 3600
TESTS = (
    "tests/integration/rdma",
    *(f"tests/rdma/test_{name}.py" for name in ("verbs_faults", "verbs_links", "leaks")),
)
WHICH = "import pyverbs; print(pyverbs.__path__[0])"


@pytest.mark.rdma_guest
@pytest.mark.long
@pytest.mark.timeout(BUILD_TIMEOUT_S + RUN_TIMEOUT_S + 60)
def test_what_debians_pyverbs_does_the_newest_does_too(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with capfd.disabled():
        kit, built = fetch.ensure(default_directory()), newest.ensure(default_directory())
        variables = [f"{name}={value}" for name, value in newest.variables(built).items()]
        which = f"{shlex.join((sys.executable, '-c', WHICH))} > {guest.RESULTS_INSIDE}/which"
        script = f"{which} && exec {shlex.join(pytest_inside(TESTS))}"
        print(f"\n--- pyverbs {newest.VERSION} in the RDMA guest", flush=True)
        status = run_inside(kit, ("env", *variables, "sh", "-c", script), tmp_path)
        print("--- back from the RDMA guest", flush=True)
    assert status == 0
    assert (tmp_path / "which").read_text().strip() == str(built / "python" / "pyverbs")
    assert passed(tmp_path) > 0, "every test was skipped in the guest"
