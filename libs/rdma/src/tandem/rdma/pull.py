"""Pulls spans of another process' memory with more than one thread: the kernel pins page by page, which costs more
than the copy where pages are small, and one thread leaves cores idle meanwhile."""

from __future__ import annotations

import errno
import os
import threading
from typing import Final

from tandem.rdma.iov import IovCursor, pull

_WORTH_HELP_BYTES: Final = 512 * 1024
"""Smaller spans are pulled by one thread."""


class Span:
    """Where a write's bytes come from and go to, for one thread."""

    def __init__(self, pid: int, local: IovCursor, remote: IovCursor) -> None:
        self._pid = pid
        self._local = local
        self._remote = remote

    def pull(self, start: int, end: int) -> int:
        """Pulls bytes [start, end) of the write; returns those that came, fewer if a page can't be reached.

        Raises OSError.
        """
        self._local.seek(start)
        self._remote.seek(start)
        while self._local.position < end:
            wanted = self._remote.window(self._local.window(end - self._local.position))
            try:
                got = pull(self._pid, self._local, self._remote)
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
                got = 0
            self._local.advance(got)
            self._remote.advance(got)
            if got < wanted:
                break
        return self._local.position - start


class Helper:
    """A second thread that pulls the other half of a span. Used by one thread at a time."""

    def __init__(self) -> None:
        self._task: tuple[Span, int, int] | None = None
        self._result: int | OSError = 0
        self._asked = threading.Semaphore(0)
        self._answered = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._main, name="cma-help", daemon=True)
        self._thread.start()

    def pull(self, own: Span, other: Span, start: int, end: int) -> int:
        """Pulls bytes [start, end), one half in each thread; returns those that came, from the start on.

        Raises OSError. When it returns or raises, neither thread pulls any more.
        """
        if end - start < _WORTH_HELP_BYTES:
            return own.pull(start, end)
        middle = (start + end) // 2 & ~0xFFF
        self._task = (other, middle, end)
        self._asked.release()
        try:
            got = own.pull(start, middle)
        finally:
            self._answered.acquire()
        if isinstance(self._result, OSError):
            raise self._result
        return got + self._result if got == middle - start else got

    def close(self) -> None:
        """Ends the thread."""
        self._task = None
        self._asked.release()
        self._thread.join()

    def _main(self) -> None:
        while True:
            self._asked.acquire()
            if self._task is None:
                return
            span, start, end = self._task
            try:
                self._result = span.pull(start, end)
            except OSError as error:
                self._result = error
            self._answered.release()


def helper_if_useful() -> Helper | None:
    """A helper, where there is a core for it."""
    return Helper() if len(os.sched_getaffinity(0)) > 1 else None
