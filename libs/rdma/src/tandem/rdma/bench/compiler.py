"""Compiles the small C programs of the benchmarks when they start."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def compile_c(source: Path, target: Path, *options: str, packages: str = "gcc") -> None:
    """Compiles one file. packages: what Debian users install for it. Raises RuntimeError if there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError(f"this benchmark needs a C compiler, as cc (Debian: apt install {packages})")
    subprocess.run([compiler, "-O2", "-o", target, source, *options], check=True)
