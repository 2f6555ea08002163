"""What this machine can test, and what to do with a test that needs more.

A marker of these names on a test (`@pytest.mark.sglang`) skips it where the machine lacks it, with the reason; where
TANDEM_REQUIRE names it, the test fails instead.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

DOCKER_TIMEOUT_S: Final = 10
_DOCKER_PARTS: Final = {
    "no Docker engine answers": ("version",),
    "docker has no compose": ("compose", "version"),
    "docker has no buildx": ("buildx", "version"),
}


def sglang_missing() -> str | None:
    """Why SGLang's tests cannot run, or None."""
    return None if find_spec("sglang") and find_spec("torch") else "SGLang is not installed; `make setup` installs it"


def rdma_missing() -> str | None:
    """Why tests on a verbs device cannot run, or None."""
    devices = Path("/sys/class/infiniband")
    return None if devices.is_dir() and any(devices.iterdir()) else "this machine has no verbs device"


@cache
def docker_missing() -> str | None:
    """Why tests with containers cannot run, or None."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    for reason, command in _DOCKER_PARTS.items():
        try:
            subprocess.run(("docker", *command), capture_output=True, timeout=DOCKER_TIMEOUT_S, check=True)
        except subprocess.SubprocessError:
            return reason
    return None


def cc_missing() -> str | None:
    """Why what stands for a C library cannot be made, or None."""
    return None if shutil.which("cc") else "there is no C compiler"


CAPABILITIES: dict[str, Callable[[], str | None]] = {
    "sglang": sglang_missing,
    "rdma": rdma_missing,
    "docker": docker_missing,
    "cc": cc_missing,
}
