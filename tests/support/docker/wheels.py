"""PyTorch for the CPU as a wheel, for images with SGLang where pip's own index has only builds with CUDA libraries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from tests.support.docker.stack import ROOT, run

DOWNLOAD_TIMEOUT_S: Final = 900


def torch_wheel(folder: Path) -> Path:
    """A folder with the build of PyTorch that this machine's pip finds, which is what `make setup` installs."""
    if not list(folder.glob("torch-*.whl")):
        locks = [part for name in ("base", "sglang-cpu") for part in ("-c", str(ROOT / "requirements" / f"{name}.txt"))]
        command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder))
        run(*command, *locks, "torch", timeout_s=DOWNLOAD_TIMEOUT_S)
    return folder
