"""The four system calls that move bytes, on iovec arrays, and a cursor that walks through such an array.

ctypes releases the GIL around each call.
"""

from __future__ import annotations

import ctypes
import errno
import os
from bisect import bisect_left, bisect_right
from typing import Final

import numpy as np

from tandem.rdma.api import U64

IOV_MAX: Final = 1024
"""Most iovecs that the kernel takes in one call."""

_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("readv", "writev"):
    getattr(_libc, _name).argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
    getattr(_libc, _name).restype = ctypes.c_ssize_t
for _name in ("process_vm_readv", "process_vm_writev"):
    getattr(_libc, _name).argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    )
    getattr(_libc, _name).restype = ctypes.c_ssize_t


class IovCursor:
    """Walks through the bytes of an iovec array, in order. `window` shows what comes next, `advance` passes it.

    Both are called once per system call, so they read and write numbers through memoryviews: numpy takes several times
    as long for a handful of numbers.
    """

    def __init__(self, iov: U64) -> None:
        self._iov = np.ascontiguousarray(iov, dtype=np.uint64)
        self._numbers = self._iov.reshape(-1).data
        self._ends = np.cumsum(self._iov[:, 1], dtype=np.uint64).data
        self._index = 0
        self._scratch = np.zeros((max(1, min(IOV_MAX, len(self._ends))), 2), np.uint64)
        self._shown = self._scratch.reshape(-1).data
        self.total = self._ends[-1] if len(self._ends) else 0
        self.position = 0
        self.address = int(self._scratch.ctypes.data)
        """Where the iovecs of the window lie."""
        self.count = 0
        """Iovecs in the window."""

    @property
    def left(self) -> int:
        """Bytes not passed yet."""
        return self.total - self.position

    @property
    def run_address(self) -> int:
        """Address of the first byte of the window."""
        return self._shown[0]

    @property
    def first_bytes(self) -> int:
        """Bytes of the first iovec of the window."""
        return self._shown[1]

    @property
    def shown(self) -> U64:
        """The iovecs of the window; a view that the next window overwrites."""
        return self._scratch[: self.count]

    def window(self, most_bytes: int) -> int:
        """Puts the next iovecs, at most `most_bytes` in all, in the window; returns its bytes (0 at the end)."""
        limit = min(self.position + most_bytes, self.total)
        if limit <= self.position:
            self.count = 0
            return 0
        first, shown = self._index, self._shown
        after = min(first + IOV_MAX, len(self._ends))
        last = min(bisect_left(self._ends, limit, first, after), after - 1)
        self.count = last + 1 - first
        shown[: 2 * self.count] = self._numbers[2 * first : 2 * last + 2]
        passed = self.position - (self._ends[first] - shown[1])
        shown[0] += passed
        shown[1] -= passed
        beyond = max(0, self._ends[last] - limit)
        shown[2 * self.count - 1] -= beyond
        return self._ends[last] - beyond - self.position

    def advance(self, count: int) -> None:
        """Passes bytes."""
        self.seek(self.position + count)

    def seek(self, position: int) -> None:
        """Goes to a byte."""
        self.position = position
        self._index = bisect_right(self._ends, position)

    def fork(self) -> IovCursor:
        """Another cursor over the same bytes, for another thread."""
        return IovCursor(self._iov)


def readv(fd: int, cursor: IovCursor) -> int:
    """Reads from a descriptor into the window; returns the bytes (0 = end of stream). Raises OSError."""
    return _checked(_libc.readv, fd, cursor.address, cursor.count)


def writev(fd: int, cursor: IovCursor) -> int:
    """Writes the window to a descriptor; returns the bytes. Raises OSError."""
    return _checked(_libc.writev, fd, cursor.address, cursor.count)


def pull(pid: int, local: IovCursor, remote: IovCursor) -> int:
    """Copies from another process' window into ours, as far as the shorter one goes; returns the bytes.

    Fewer bytes than that mean that a page of either side can't be reached. Raises OSError.
    """
    return _checked(_libc.process_vm_readv, pid, local.address, local.count, remote.address, remote.count, 0)


def pull_bytes(pid: int, address: int, count: int) -> bytes:
    """Reads some bytes of another process. Raises OSError; a short read raises EFAULT."""
    target = (ctypes.c_ubyte * count)()
    local = IovCursor(np.array([[ctypes.addressof(target), count]], np.uint64))
    remote = IovCursor(np.array([[address, count]], np.uint64))
    local.window(count)
    remote.window(count)
    if pull(pid, local, remote) != count:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    return bytes(target)


def _checked(call: ctypes._NamedFuncPointer, *arguments: int) -> int:
    while True:
        count: int = call(*arguments)
        if count >= 0:
            return count
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
