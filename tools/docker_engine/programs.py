"""Programs that the tool runs and waits for, and what it says of them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.docker_engine.settings import environment

_TIMEOUT_S: Final = 600
_COMPLAINT: Final = 4000
"""Characters of what a program printed last that are told."""


class DockerEngineError(Exception):
    """There is no engine and there can be none; the text says why and what to do."""


def output(*command: str, cwd: Path | None = None, given: str = "", timeout_s: float = _TIMEOUT_S, **env: str) -> str:
    """What a command prints, with this text as its input. Raises DockerEngineError with its complaint if it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment(LC_ALL="C", **env),
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise DockerEngineError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise DockerEngineError(f"{command[0]} was ended after {timeout_s} s: {' '.join(command)}") from None
    if done.returncode != 0:
        complaint = f"{done.stdout[-_COMPLAINT:]}\n{done.stderr[-_COMPLAINT:]}".strip()
        raise DockerEngineError(f"{' '.join(command)}: status {done.returncode}\n{complaint}")
    return done.stdout


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Says what is done, and how long it took."""
    begin = time.monotonic()
    yield
    print(f"docker_engine: {name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
