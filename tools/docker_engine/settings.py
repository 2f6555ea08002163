"""What the environment says to the tool; the only place in it that reads it."""

from __future__ import annotations

import os
from pathlib import Path


def default_directory() -> Path:
    """TANDEM_DOCKER_ENGINE_DIR, or a folder of the user's cache: images, containers, logs, and what was started."""
    chosen = os.environ.get("TANDEM_DOCKER_ENGINE_DIR")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen).absolute() if chosen else cache / "tandem" / "docker-engine"


def environment(**changes: str) -> dict[str, str]:
    """The environment for a program that the tool starts, with changes."""
    return {**os.environ, **changes}
