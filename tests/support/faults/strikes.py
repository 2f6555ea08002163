"""The faults themselves: each is prepared for a service's processes, its own first, and then strikes at once."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final

import psutil

from tests.support.faults.cells import Fault
from tests.support.system.system import System

Strike = Callable[[], Awaitable[None]]
"""Strikes, and returns when the fault is over."""
Address = tuple[str, int]

STOPPED_S: Final = 5.0
PIDFD_GETFD: Final = 438
"""Number of the system call, the same on every architecture."""
NOWHERE: Final = bytes(16)
"""A socket address of the family AF_UNSPEC."""

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def _kill(_: System, pids: Sequence[int]) -> Iterator[Strike]:
    async def strike() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    yield strike


@contextmanager
def _terminate(_: System, pids: Sequence[int]) -> Iterator[Strike]:
    """Asks the service alone, as a supervisor does: the others are its own to end."""

    async def strike() -> None:
        os.kill(pids[0], signal.SIGTERM)

    yield strike


@contextmanager
def _stop(_: System, pids: Sequence[int]) -> Iterator[Strike]:
    async def strike() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(STOPPED_S)  # the length of the fault
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    yield strike


@contextmanager
def _cut(system: System, pids: Sequence[int]) -> Iterator[Strike]:
    """Resets every TCP connection between the processes and other services of their system, for both ends of each.

    Connecting a socket to nowhere resets its connection; the processes' own sockets are borrowed for that.
    """
    owners = system.processes()
    own = owners[pids[0]]
    others = {address for other, owner in owners.items() if owner != own for address in _local_addresses(other)}
    with ExitStack() as stack:
        borrowed = [one for pid in pids for one in _borrowed_of(pid, others, stack)]
        assert borrowed, f"{own} has no connections"

        async def strike() -> None:
            for one in borrowed:
                _check(_libc.connect(one.fileno(), NOWHERE, len(NOWHERE)))
                one.close()

        yield strike


def _borrowed_of(pid: int, peers: set[Address], stack: ExitStack) -> list[socket.socket]:
    """A process's connections to some addresses, until the stack is closed."""
    pidfd = os.pidfd_open(pid)
    stack.callback(os.close, pidfd)
    return [
        stack.enter_context(_borrowed(pidfd, one.fd))
        for one in psutil.Process(pid).net_connections(kind="tcp")
        if one.status == psutil.CONN_ESTABLISHED and _plain(one.raddr) in peers
    ]


def _local_addresses(pid: int) -> set[Address]:
    found = psutil.Process(pid).net_connections(kind="tcp")
    return {_plain(one.laddr) for one in found if one.status == psutil.CONN_ESTABLISHED}


def _plain(address: Address) -> Address:
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


PREPARED: Final[Mapping[Fault, Callable[[System, Sequence[int]], AbstractContextManager[Strike]]]] = {
    Fault.KILL: _kill,
    Fault.STOP: _stop,
    Fault.TERM: _terminate,
    Fault.CUT: _cut,
}
"""Each takes a system and the pids of one of its services, and gives the strike."""
