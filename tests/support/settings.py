"""What the environment says to the tests; the only place in tests/ that reads it."""

from __future__ import annotations

import os
from pathlib import Path


def required_capabilities() -> frozenset[str]:
    """TANDEM_REQUIRE=sglang,rdma,docker: what must not be skipped for want of it."""
    return frozenset(filter(None, os.environ.get("TANDEM_REQUIRE", "").split(",")))


def environment(**changes: str) -> dict[str, str]:
    """The environment for a process that a test starts, with changes."""
    return {**os.environ, **changes}


def python_path(*folders: Path) -> str:
    """A PYTHONPATH with these folders before what it names already."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
