"""The faults themselves: each is prepared for a process of a system, and then strikes at once."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Final

import psutil

from tests.support.faults.cells import Fault
from tests.support.system.system import System

Strike = Callable[[], Awaitable[None]]
"""Strikes, and returns when the fault is over."""

STOPPED_S: Final = 5.0
PIDFD_GETFD: Final = 438
"""Number of the system call, the same on every architecture."""
NOWHERE: Final = bytes(16)
"""A socket address of the family AF_UNSPEC."""

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def _signal(number: signal.Signals, _: System, pid: int) -> Iterator[Strike]:
    async def strike() -> None:
        os.kill(pid, number)

    yield strike


@contextmanager
def _stop(_: System, pid: int) -> Iterator[Strike]:
    async def strike() -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(STOPPED_S)  # the length of the fault
        finally:
            os.kill(pid, signal.SIGCONT)

    yield strike


@contextmanager
def _cut(system: System, pid: int) -> Iterator[Strike]:
    """Resets every TCP connection between the process and other services of its system, for both ends of each.

    Connecting a socket to nowhere resets its connection; the process's own sockets are borrowed for that.
    """
    owners = system.processes()
    others = {address for other, owner in owners.items() if owner != owners[pid] for address in _local_addresses(other)}
    with ExitStack() as stack:
        pidfd = os.pidfd_open(pid)
        stack.callback(os.close, pidfd)
        borrowed = [
            stack.enter_context(_borrowed(pidfd, one.fd))
            for one in psutil.Process(pid).net_connections(kind="tcp")
            if one.status == psutil.CONN_ESTABLISHED and _plain(one.raddr) in others
        ]
        assert borrowed, f"{owners[pid]} has no connections"

        async def strike() -> None:
            for one in borrowed:
                _check(_libc.connect(one.fileno(), NOWHERE, len(NOWHERE)))
                one.close()

        yield strike


def _local_addresses(pid: int) -> set[tuple[str, int]]:
    found = psutil.Process(pid).net_connections(kind="tcp")
    return {_plain(one.laddr) for one in found if one.status == psutil.CONN_ESTABLISHED}


def _plain(address: tuple[str, int]) -> tuple[str, int]:
    """gRPC speaks IPv4 through IPv6 sockets."""
    return address[0].removeprefix("::ffff:"), address[1]


def _borrowed(pidfd: int, descriptor: int) -> socket.socket:
    """Another descriptor of a process's socket, for this process."""
    return socket.socket(fileno=_check(_libc.syscall(PIDFD_GETFD, pidfd, descriptor, 0)))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


PREPARED: Final[Mapping[Fault, Callable[[System, int], AbstractContextManager[Strike]]]] = {
    Fault.KILL: partial(_signal, signal.SIGKILL),
    Fault.STOP: _stop,
    Fault.TERM: partial(_signal, signal.SIGTERM),
    Fault.CUT: _cut,
}
"""Each takes a system and the pid of one of its processes, and gives the strike."""
