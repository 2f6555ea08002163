"""The peers' own virtual environment: their wheels, pinned, and below them what this environment has."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

SGLANG_ROUTER: Final = "sglang-router"
SMG: Final = "smg"
VLLM_ROUTER: Final = "vllm-router"
PLAIN: Final = "plain proxy"
PINS: Final = {SGLANG_ROUTER: "0.3.2", SMG: "1.13.0", VLLM_ROUTER: "0.1.17"}
PEERS: Final = (*PINS, PLAIN)
INSTALL_TIMEOUT_S: Final = 600
WITH_AIOHTTP: Final = "aiohttp"
"""What the plain proxy is made of."""


def install(folder: Path, pip_args: Sequence[str]) -> None:
    """Makes the environment, with every peer in it. Raises subprocess.SubprocessError."""
    python = str(folder / "bin" / "python")
    _call(sys.executable, "-m", "venv", "--clear", str(folder))
    wanted = [f"{name}=={version}" for name, version in PINS.items()]
    _call(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", *pip_args, *wanted)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "below.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")


def missing(peer: str, folder: Path) -> str:
    """Why a peer can't be measured; empty if it can."""
    if peer == PLAIN:
        return "" if find_spec(WITH_AIOHTTP) else f"{WITH_AIOHTTP} is not installed"
    name = peer.replace("-", "_")
    found = [*folder.glob(f"lib/python*/site-packages/{name}-{PINS[peer]}.dist-info")]
    return "" if found else f"{peer} {PINS[peer]} is not installed; --install does it"


def _call(*command: str) -> None:
    subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S)
