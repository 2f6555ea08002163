"""`tandem --help` and completion start quickly: what takes long to import is imported by the command that needs it."""

from __future__ import annotations

import subprocess
import sys

SLOW = ("grpc", "google.protobuf", "httpx", "pydantic", "numpy", "rich.live")


def test_the_command_line_alone_imports_nothing_that_is_slow() -> None:
    program = f"import sys, tandem.cli.__main__; print([name for name in {SLOW} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"
