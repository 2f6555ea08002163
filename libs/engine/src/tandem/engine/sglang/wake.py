"""A bell that one thread rings and another waits for, also together with ZMQ sockets."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable


class Wake:
    """An eventfd: `set` from any thread, waited for and taken by one."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def set(self) -> None:
        """Rings."""
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        """Rings no more, and nobody waits for it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._poll.unregister(fd)
            os.close(fd)

    def take(self) -> bool:
        """Whether it rang since the last take."""
        try:
            return os.eventfd_read(self.fd) > 0
        except BlockingIOError:
            return False

    def wait_until(self, done: Callable[[], bool], timeout_ms: int) -> bool:
        """Waits until done() holds, looking again at each ring. False if it did not within timeout_ms."""
        end = time.monotonic() + timeout_ms / 1000
        while not done():
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._poll.poll(left * 1000)
            self.take()
        return True
