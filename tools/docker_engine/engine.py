"""Starts an engine and ends exactly that one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from tools.docker_engine import install
from tools.docker_engine.network import Network
from tools.docker_engine.programs import DockerEngineError, output, step
from tools.docker_engine.settings import environment

START_TIMEOUT_S: Final = 60
STOP_TIMEOUT_S: Final = 45
"""An engine gives its containers ten seconds, and more if they are many."""
_ANSWER_TIMEOUT_S: Final = 10
_RUN: Final = Path("/run")
_STATE: Final = "started.json"
_LOG_TAIL: Final = 3000


@dataclass(frozen=True, slots=True)
class Started:
    """An engine that this tool started."""

    pid: int
    born: int
    """When it started, in clock ticks since the machine did: a process id alone may be another's by now."""
    run: str
    """Folder of its sockets and of what runs in it."""
    network: Network
    """How the network was before it."""
    owner: int = 0
    """Process that it ends with; 0 = it goes on until it is stopped."""
    owner_born: int = 0

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """What is written in the folder, if anything is."""
        try:
            found = json.loads((directory / _STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        network = found.pop("network")
        links = frozenset(network.pop("links"))
        return cls(**found, network=Network(links=links, **network))

    def write(self, directory: Path) -> None:
        """Writes it into the folder, whole."""
        part = directory / f"{_STATE}.part"
        document = asdict(self)
        document["network"]["links"] = sorted(self.network.links)
        part.write_text(json.dumps(document, indent=2), encoding="utf-8")
        part.replace(directory / _STATE)

    def runs(self) -> bool:
        """Whether that process still lives."""
        return born(self.pid) == self.born

    def left(self) -> bool:
        """Whether the process that it was to end with is gone."""
        return self.owner != 0 and born(self.owner) != self.owner_born


def answers() -> bool:
    """Whether an engine answers that has Compose and buildx."""
    try:
        for command in (("version",), ("compose", "version"), ("buildx", "version")):
            output("docker", *command, timeout_s=_ANSWER_TIMEOUT_S)
    except DockerEngineError:
        return False
    return True


def ensure(directory: Path, *, with_me: bool = False) -> Started | None:
    """Makes sure that an engine answers; returns what was started for that, or None if one was there.

    with_me: the engine ends when the thread that called this does. Raises DockerEngineError.
    """
    if answers():
        return None
    with _locked(directory):
        install.install()
        if answers():  # the installation may have started one
            return None
        return _start(directory, with_me=with_me)


def stop(directory: Path, *, only_left: bool = False) -> bool:
    """Ends the engine that was started from this folder, and undoes what it did; returns whether there was one.

    only_left: if the process that it was to end with was killed before it could do that. Raises DockerEngineError.
    """
    with _locked(directory):
        started = Started.read(directory)
        return started is not None and (started.left() or not only_left) and _stop(directory)


def born(pid: int) -> int:
    """When a process started, in clock ticks since the machine did; -1 if there is none, or only its exit status."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    return -1 if fields[0] == "Z" else int(fields[19])


def _start(directory: Path, *, with_me: bool) -> Started:
    _stop(directory)  # what an engine left that was killed
    network = Network.now()
    run = tempfile.mkdtemp(prefix="tandem-docker-", dir=_RUN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as news, (directory / "dockerd.log").open("wb") as log:
        news.bind(f"{run}/news")
        leash = ("setpriv", "--pdeathsig", "TERM") if with_me else ()
        process = subprocess.Popen(
            (*leash, "dockerd", "--data-root", str(directory / "data"), "--exec-root", f"{run}/exec"),
            env=environment(NOTIFY_SOCKET=f"{run}/news"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        owner = os.getpid() if with_me else 0
        started = Started(process.pid, born(process.pid), run, network, owner, born(owner))
        started.write(directory)
        try:
            with step("start the engine"):
                _wait_ready(process.pid, news)
        except DockerEngineError as error:
            said = (directory / "dockerd.log").read_text(encoding="utf-8", errors="replace")
            _stop(directory)
            raise DockerEngineError(f"{error}\n{said[-_LOG_TAIL:]}") from None
        except BaseException:
            _stop(directory)
            raise
    if not answers():
        _stop(directory)
        raise DockerEngineError("the engine started and does not answer")
    return started


def _wait_ready(pid: int, news: socket.socket) -> None:
    """Waits for what dockerd tells a supervisor, or for its end."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with _pidfd(pid) as end:
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([news.fileno(), end], [], [], left)
            if end in ready:
                raise DockerEngineError("the engine ended as it started; it said:")
            if news.fileno() in ready and "READY=1" in news.recv(4096).decode().splitlines():
                return
    raise DockerEngineError(f"the engine was not ready after {START_TIMEOUT_S} s; it said:")


def _stop(directory: Path) -> bool:
    started = Started.read(directory)
    if started is None:
        return False
    with step("end the engine"):
        _end(started.pid, started.born)
        _end_containerd(Path(started.run))
        started.network.restore()
        _clear(Path(started.run))
        (directory / _STATE).unlink()
    return True


def _end(pid: int, when: int) -> None:
    """Asks a process to end, makes it end if it does not, and waits for that."""
    try:
        _signal(pid, when)
    finally:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _signal(pid: int, when: int) -> None:
    with contextlib.suppress(ProcessLookupError), _pidfd(pid) as end:
        if born(pid) != when:
            return
        for number, timeout_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, _ANSWER_TIMEOUT_S)):
            signal.pidfd_send_signal(end, number)
            if select.select([end], [], [], timeout_s)[0]:
                break


def _end_containerd(run: Path) -> None:
    """An engine ends its containerd, unless it was killed."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid = int((run / "exec/containerd/containerd.pid").read_text(encoding="ascii"))
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        if name == "containerd":
            _end(pid, born(pid))


def _clear(run: Path) -> None:
    """Removes the folder of an engine's sockets, and what is still mounted in it."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    for point in reversed([line.split()[1] for line in mounts]):
        if point.startswith(f"{run}/"):
            output("umount", "--lazy", point)
    shutil.rmtree(run, ignore_errors=True)


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    """A descriptor that is readable once the process has ended. Raises ProcessLookupError if there is none."""
    number = os.pidfd_open(pid)
    try:
        yield number
    finally:
        os.close(number)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One caller at a time per folder."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
