"""One connection of a lane and the thread that works on it.

The thread blocks in poll() on the socket and on an eventfd, with which the loop wakes it. Sockets never block, so no
system call holds the thread for longer than it takes to copy a few MiB.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import threading
from collections.abc import Callable

from tandem.core.errors import ErrorReason, TandemError

READABLE = select.POLLIN
WRITABLE = select.POLLOUT
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class Stopped(Exception):
    """The loop asked the thread to end."""


def tune(sock: socket.socket) -> None:
    """Has a connected socket send small messages at once, and notice a peer whose machine is gone."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


class Channel:
    """A connected, non-blocking socket, and the event that wakes whoever waits on it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        tune(sock)
        self._sock = sock
        self.fd = sock.fileno()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._event, select.POLLIN)
        self._alive = select.poll()
        self._alive.register(self.fd, select.POLLRDHUP)

    def wait(self, events: int, timeout_ms: int | None = None) -> int:
        """Waits for the socket or a wake-up; returns what the socket has, 0 if nothing."""
        self._poll.register(self.fd, events)
        ready = dict(self._poll.poll(timeout_ms))
        if self._event in ready:
            os.eventfd_read(self._event)
        return ready.get(self.fd, 0)

    def wake(self) -> None:
        """Any thread: ends a wait, the present or the next one."""
        os.eventfd_write(self._event, 1)

    def read_into(self, view: memoryview) -> int:
        """Reads what is there, at least 1 byte. Raises BlockingIOError if nothing is, LINK_LOST if the peer hung up."""
        count = self._sock.recv_into(view)
        if not count:
            raise hung_up()
        return count

    def write(self, view: memoryview, more: bool) -> int:
        """Writes what fits. Raises BlockingIOError if nothing does. `more` says that payload follows at once."""
        return self._sock.send(view, socket.MSG_NOSIGNAL | (socket.MSG_MORE if more else 0))

    def require_alive(self) -> None:
        """Raises TandemError(LINK_LOST) if the peer has hung up, even if unread bytes are left."""
        if any(events & _GONE for _, events in self._alive.poll(0)):
            raise hung_up()

    def shut_down(self) -> None:
        """Tells the peer that no more comes or goes; the descriptor stays."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the peer was faster

    def discard_unsent(self) -> None:
        """Makes `close` reset the connection: what the kernel still holds for a stuck peer never gets there."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        """Frees the descriptors; nobody may use them any more."""
        self._sock.close()
        os.close(self._event)


class StreamThread:
    """Base of the two workers: a thread around `work`, stopped from the loop, whose end is told to the loop.

    `work` runs until `stopping` is set, or raises TandemError or OSError if the connection is lost.
    """

    flushes = True
    """Whether what was written last still goes out when the thread ends in order."""

    def __init__(self, name: str, channel: Channel, on_end: Callable[[TandemError | None], None]) -> None:
        self.channel = channel
        self.stopping = False
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self.has_ended = False
        """Loop: whether the thread has ended and its descriptors are closed."""
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Loop: starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Loop: asks the thread to end."""
        self.stopping = True
        self.wake()

    def wake(self) -> None:
        """Loop: has the thread look for what is new."""
        if not self.has_ended:
            self.channel.wake()

    def work(self) -> None:
        """Thread: what there is to do."""
        raise NotImplementedError

    def checkpoint(self) -> None:
        """Thread: raises Stopped if the loop asked for the end."""
        if self.stopping:
            raise Stopped

    def post(self, call: Callable[..., None], *arguments: object) -> None:
        """Thread: has the loop call something. Does nothing if the loop is closed already."""
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            self.stopping = True

    def _main(self) -> None:
        error: TandemError | None = TandemError(ErrorReason.INTERNAL, "a lane's thread failed")
        try:
            self.work()
            error = None
        except Stopped:
            error = None
        except TandemError as lost:
            error = lost
        except OSError as lost:
            error = TandemError(ErrorReason.LINK_LOST, f"the lane was lost: {lost.strerror or lost}")
        finally:
            if error is None and self.flushes:
                self.channel.shut_down()
            else:
                self.channel.discard_unsent()
            self.post(self._end, error)

    def _end(self, error: TandemError | None) -> None:
        self._thread.join()  # posting this was the last thing it did
        self.channel.close()
        self.has_ended = True
        self._on_end(error)


def hung_up() -> TandemError:
    """What a lane ends with when its peer dies or closes."""
    return TandemError(ErrorReason.LINK_LOST, "the peer hung up")
