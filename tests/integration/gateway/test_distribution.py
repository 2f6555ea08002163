"""What is built from the gateway's folder holds the dashboard's files, as its Dockerfile installs just that."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tandem.gateway.web.dashboard_endpoints import FILES

ROOT = Path(__file__).resolve().parents[3]


def test_the_wheel_has_the_files_of_the_dashboard(tmp_path: Path) -> None:
    source = tmp_path / "gateway"
    shutil.copytree(ROOT / "services" / "gateway", source, ignore=shutil.ignore_patterns("*.egg-info", "build"))
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    built = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False, timeout=240)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        for name, _ in FILES.values():
            path = f"tandem/gateway/dashboard/static/{name}"
            assert packed.read(path) == (source / "src" / path).read_bytes()
