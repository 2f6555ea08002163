"""Steps of a setup: programs run and waited for, what is said of them, and folders made once, whole."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tools.rdma_vm.kit import RdmaVmError
from tools.rdma_vm.settings import environment

_STEP_TIMEOUT_S: Final = 900
_COMPLAINT: Final = 4000
"""Characters of what a program printed last that are told."""


def made_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Makes `folder` if it is not there: `build` fills another one beside it, which then takes its name.

    So an interrupted one is made anew, and callers at the same time make it once. Raises RdmaVmError.
    """
    if folder.is_dir():
        return
    directory = folder.parent
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / "lock"):
        if folder.is_dir():
            return
        for leftover in directory.glob("building-*"):
            shutil.rmtree(leftover)
        building = Path(tempfile.mkdtemp(prefix="building-", dir=directory))
        try:
            build(building)
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def output(
    *command: str, cwd: Path | None = None, executable: str | None = None, variables: dict[str, str] | None = None
) -> str:
    """What a command prints. Raises RdmaVmError with its complaint if it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            executable=executable,
            env=environment(LC_ALL="C", **(variables or {})),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_STEP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RdmaVmError(f"{command[0]} was ended after {_STEP_TIMEOUT_S} s: {' '.join(command)}") from None
    if done.returncode != 0:
        # Some complain on stdout, as ninja does with what a compiler said.
        complaint = f"{done.stdout[-_COMPLAINT:]}\n{done.stderr[-_COMPLAINT:]}".strip()
        raise RdmaVmError(f"{' '.join(command)}: status {done.returncode}\n{complaint}")
    return done.stdout


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Says what is done, and how long it took."""
    begin = time.monotonic()
    yield
    say(f"{name}: {time.monotonic() - begin:.0f} s")


def say(text: str) -> None:
    """One line on stderr."""
    print(f"rdma_vm: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that the kernel gives back even if this process is killed; whoever has it is bounded in time."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another setup is running; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
