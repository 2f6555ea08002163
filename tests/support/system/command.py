"""The `tandem` command, as a user of a running system gives it."""

from __future__ import annotations

import subprocess
import sys

from tests.support.settings import environment
from tests.support.system.system import System


def tandem(system: System | None, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a shell that knows the system by its state file."""
    state = str(system.folder / "state.json") if system else "no-such-folder/up.json"
    return subprocess.run(
        [sys.executable, "-m", "tandem.cli", *words],
        env=environment(**{"TANDEM_CLI_STATE_FILE": state, "COLUMNS": "250", **env}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
