"""One child process: started on a leash, its lines read, ended with all that it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Final

from tandem.cli.settings import python

READ_BYTES: Final = 1 << 16
MAX_LINE_BYTES: Final = 1 << 14
"""Longer lines are cut up."""
TAIL_LINES: Final = 25
OUTPUT_GRACE_S: Final = 1.0
"""Longest wait for the rest of the output once a child is dead: a stranger may hold its pipe."""
ANNOUNCEMENT: Final = "listening "


class Child:
    """Make it with `start`. It leads a process group, so that what it starts can be ended with it."""

    def __init__(self, process: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> None:
        self._process = process
        # Signals through it never hit another process, whatever happens to the pid.
        self._pidfd = os.pidfd_open(process.pid)
        self._on_line = on_line
        self._announced: dict[str, str] = {}
        self._heard = asyncio.Event()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        """Its last lines."""
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            asyncio.create_task(_read(process.stdout, self._stdout_line)),
            asyncio.create_task(_read(process.stderr, self._log_line)),
        ]
        self._ended = asyncio.create_task(self._end())

    @classmethod
    async def start(cls, command: Sequence[str], env: Mapping[str, str], on_line: Callable[[str], None]) -> Child:
        """Starts a program. on_line gets each line of its output, but for announcements. Raises OSError."""
        return cls(_spawn([python(), "-m", "tandem.cli.leash", str(os.getpid()), *command], env), on_line)

    @property
    def pid(self) -> int:
        """Its pid, which is its process group's too."""
        return self._process.pid

    async def announced(self, *names: str) -> dict[str, str]:
        """Waits until it has said where it listens, under each of these names; address by name.

        Returns fewer if it ended before.
        """
        while not self._ended.done() and not self._announced.keys() >= set(names):
            self._heard.clear()
            heard = asyncio.ensure_future(self._heard.wait())
            try:
                await asyncio.wait({heard, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                heard.cancel()
        return {name: self._announced[name] for name in names if name in self._announced}

    def heard(self, name: str) -> str:
        """Where it has said that it listens under this name; empty if it has not."""
        return self._announced.get(name, "")

    async def wait(self) -> int:
        """Its exit code (minus the signal's number if one ended it), when it has ended and its output is read."""
        return await asyncio.shield(self._ended)

    async def stop(self, grace_ms: int) -> int:
        """SIGTERM, so that it drains; after grace_ms SIGKILL to its whole group. Returns the exit code."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self.wait(), grace_ms / 1000)
        self.kill()
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL to its whole group, unless it has ended: then that is done already."""
        # The pid, and so the group's number, is given to nobody else before the process is waited for.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            signal.pidfd_send_signal(self._pidfd, number)

    async def _end(self) -> int:
        await _readable(self._pidfd)
        # What it started must not outlive it.
        self.kill()
        code = self._process.wait()
        os.close(self._pidfd)
        await asyncio.wait(self._readers, timeout=OUTPUT_GRACE_S)
        for reader in self._readers:
            reader.cancel()
        return code

    def _stdout_line(self, line: str) -> None:
        words = line.split()
        if line.startswith(ANNOUNCEMENT) and len(words) == 3:
            self._announced[words[1]] = words[2]
            self._heard.set()
        else:
            self._log_line(line)

    def _log_line(self, line: str) -> None:
        self.tail.append(line)
        self._on_line(line)


def _spawn(command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """In a session, and so a process group, of its own: Ctrl-C at the terminal reaches only us."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env),
        start_new_session=True,
    )


async def _readable(descriptor: int) -> None:
    """Waits until a descriptor can be read; a process's can when the process has ended."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


async def _read(pipe: IO[bytes], take: Callable[[str], None]) -> None:
    """Hands on each line, without its end, and closes the pipe when it is done with it."""
    stream = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
    rest = b""
    try:
        while data := await stream.read(READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                take(line.decode(errors="replace").rstrip())
            if len(rest) > MAX_LINE_BYTES:
                take(rest.decode(errors="replace"))
                rest = b""
        if rest:
            take(rest.decode(errors="replace").rstrip())
    finally:
        transport.close()
