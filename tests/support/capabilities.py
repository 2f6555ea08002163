"""What this machine can test, and what to do with a test that needs more.

A marker of these names on a test (`@pytest.mark.sglang`) skips it where the machine lacks it, with the reason; where
TANDEM_REQUIRE names it, the test fails instead.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tests.support.browser import CHROMIUM
from tests.support.settings import required_capabilities
from tools.docker_engine import engine
from tools.rdma_vm.kit import Kit
from tools.rdma_vm.settings import default_directory

DEVICES: Final = Path("/sys/class/infiniband")
RDMA_HINT: Final = "`make test-rdma` fetches a guest with two and runs these tests there (docs/testing-rdma.md)"


def sglang_missing() -> str | None:
    """Why SGLang's tests cannot run, or None."""
    return None if find_spec("sglang") and find_spec("torch") else "SGLang is not installed; `make setup` installs it"


def has_verbs_device() -> bool:
    """Whether this machine has an RDMA device, in hardware or software."""
    return DEVICES.is_dir() and any(DEVICES.iterdir())


def rdma_missing() -> str | None:
    """Why tests on a verbs device cannot run here, or None."""
    return None if has_verbs_device() else f"this machine has no verbs device; {RDMA_HINT}"


def rdma_guest_missing() -> str | None:
    """Why the RDMA guest cannot run those tests, or None. Where it must, the test that starts it sets it up first."""
    if Kit.of(default_directory()).is_set_up() or "rdma" in required_capabilities():
        return None
    return f"the RDMA guest is not set up; {RDMA_HINT}"


@cache
def docker_missing() -> str | None:
    """Why tests with containers cannot run, or None. Where they must, tests/compose starts an engine first."""
    if "docker" in required_capabilities() or engine.answers():
        return None
    return "no Docker engine with Compose and buildx answers; `make test-compose` starts one, as root on Debian"


def cc_missing() -> str | None:
    """Why what stands for a C library cannot be made, or None."""
    return None if shutil.which("cc") else "there is no C compiler"


def openssl_missing() -> str | None:
    """Why no certificates can be made for a test, or None."""
    return None if shutil.which("openssl") else "there is no command openssl"


def browser_missing() -> str | None:
    """Why tests in a browser cannot run, or None."""
    if find_spec("playwright") is None:
        return "playwright is not installed; `make dev` installs it"
    return None if shutil.which(CHROMIUM) else f"there is no {CHROMIUM}; on Debian: apt-get install chromium"


CAPABILITIES: dict[str, Callable[[], str | None]] = {
    "sglang": sglang_missing,
    "rdma": rdma_missing,
    "rdma_guest": rdma_guest_missing,
    "docker": docker_missing,
    "cc": cc_missing,
    "openssl": openssl_missing,
    "browser": browser_missing,
}
