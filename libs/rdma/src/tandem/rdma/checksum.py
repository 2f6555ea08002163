"""The checksum of a chunk: XXH3-64 over its bytes in the order of its ranges."""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import os

import numpy as np
import xxhash

from tandem.rdma.api import U64
from tandem.rdma.iov import IovCursor, gather, pull_bytes

_PIECE_BYTES = 256 * 1024
"""Scattered ranges are gathered in pieces of this size, which stay in the cache until they are hashed."""
_IN_PLACE_BYTES = 64 * 1024
"""A run of at least this many bytes is hashed where it lies."""

_log = logging.getLogger(__name__)


@functools.cache
def can_gather() -> bool:
    """Whether this process may gather its own pages with process_vm_readv; some sandboxes forbid it."""
    own = np.zeros(1, np.uint8)
    try:
        pull_bytes(os.getpid(), int(own.ctypes.data), 1)
    except OSError as error:
        _log.warning("process_vm_readv is not allowed here (%s); checksums of scattered pages are slower", error)
        return False
    return True


class ChunkHasher:
    """Hashes the memory under an iovec array, in order, as far as it is told that the bytes are there."""

    def __init__(self, iov: U64) -> None:
        self._cursor = IovCursor(iov)
        self._state = xxhash.xxh3_64()
        self._scratch = np.empty(_PIECE_BYTES, np.uint8)
        self._view = self._scratch.data
        self._target = IovCursor(np.array([[self._scratch.ctypes.data, _PIECE_BYTES]], np.uint64))

    @property
    def position(self) -> int:
        """Bytes hashed so far."""
        return self._cursor.position

    def update_to(self, position: int) -> None:
        """Hashes up to a position in the chunk, in bytes."""
        while self._cursor.position < position:
            count = self._cursor.window(min(_PIECE_BYTES, position - self._cursor.position))
            first = self._cursor.first_bytes
            if first >= min(_IN_PLACE_BYTES, count) or not can_gather():
                count = first
                self._state.update(_view(self._cursor.run_address, first))
            else:
                self._gather(count)
                self._state.update(self._view[:count])
            self._cursor.advance(count)

    def value(self) -> int:
        """The checksum of what was hashed."""
        return self._state.intdigest()

    def _gather(self, count: int) -> None:
        self._target.window(count)
        if gather(self._cursor, self._target) != count:
            raise OSError(errno.EFAULT, "a range of the chunk is not mapped")


def _view(address: int, count: int) -> memoryview:
    return memoryview((ctypes.c_ubyte * count).from_address(address)).cast("B")
