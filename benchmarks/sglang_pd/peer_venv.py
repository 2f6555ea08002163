"""The peers' own virtual environment: this one's SGLang, and on top of it what only SGLang's own PD needs."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

from benchmarks.sglang_pd.settings import peer_folder

PACKAGES: Final = (
    "sglang-router==0.3.2",
    "nixl==1.5.1",
    "nixl-cu13==1.5.1",
    "mooncake-transfer-engine-non-cuda==0.3.13.post1",
)
PLUGIN: Final = "pd_on_cpu"
IMPORTS: Final = {"nixl": "nixl._api", "mooncake_tcp": "mooncake.engine"}
"""What a backend must be able to import."""
INSTALL_TIMEOUT_S: Final = 400
IMPORT_TIMEOUT_S: Final = 60


def peer_python(pip_args: list[str]) -> str:
    """The interpreter of that environment, which is made in the user's cache unless it is there. pip_args: for pip."""
    folder = peer_folder()
    python, done = folder / "bin" / "python", folder / "done"
    wanted = "\n".join([*PACKAGES, sysconfig.get_path("purelib")])
    if not done.is_file() or done.read_text() != wanted:
        _call(sys.executable, "-m", "venv", "--clear", str(folder))
        _call(str(python), "-m", "pip", "install", "-q", "--no-deps", *pip_args, *PACKAGES)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        _link(folder / "lib" / version / "site-packages")
        done.write_text(wanted)
    return str(python)


def _call(*command: str) -> None:
    subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S)


def _link(site: Path) -> None:
    """Everything of this environment can be imported too, and SGLang finds the plugin by its entry point."""
    (site / "below.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    info = site / f"{PLUGIN}-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN}\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{PLUGIN} = benchmarks.sglang_pd.repairs:register\n")


def missing(python: str, backend: str, env: dict[str, str]) -> str:
    """Why a backend cannot be imported; empty if it can."""
    command = [python, "-c", f"import {IMPORTS[backend]}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
