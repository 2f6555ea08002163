"""What the environment says to the comparison."""

from __future__ import annotations

import os
from pathlib import Path


def peer_folder() -> Path:
    """Where the peers' virtual environment is kept: a folder of the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "tandem" / "sglang-pd"
