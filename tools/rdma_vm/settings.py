"""What the environment says to the tool; the only place in it that reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_PASSED_ON: Final = frozenset({"HOME", "LANG", "LC_ALL", "PATH", "VIRTUAL_ENV"})
_PASSED_ON_PREFIXES: Final = ("TANDEM_", "PYTHON", "PYTEST_")


def default_directory() -> Path:
    """TANDEM_RDMA_VM_DIR, or a folder of the user's cache: where what is fetched is kept."""
    chosen = os.environ.get("TANDEM_RDMA_VM_DIR")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen).absolute() if chosen else cache / "tandem" / "rdma-vm"


def passed_on() -> dict[str, str]:
    """The variables that a command in the guest sees as it would see them here."""
    return {
        name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }


def environment(**changes: str) -> dict[str, str]:
    """The environment for a program that the tool starts on this machine, with changes."""
    return {**os.environ, **changes}
