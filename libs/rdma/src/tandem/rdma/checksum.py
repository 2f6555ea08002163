"""The checksum of a chunk: XXH3-64 over its bytes in the order of its ranges."""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import os

import numpy as np
import numpy.typing as npt
import xxhash

from tandem.rdma.api import U64
from tandem.rdma.iov import IovCursor, gather, pull_bytes

_PIECE_BYTES = 256 * 1024
"""Scattered ranges are gathered in pieces of this size, which stay in the cache until they are hashed."""
_IN_PLACE_BYTES = 64 * 1024
"""A run of at least this many bytes is hashed where it lies."""
_LEAST_GRAIN_BYTES = 256
"""Pages on a grid of at least this many bytes are gathered by numpy, others by the kernel."""

_log = logging.getLogger(__name__)


@functools.cache
def can_gather() -> bool:
    """Whether this process may gather its own pages with process_vm_readv; some sandboxes forbid it."""
    own = np.zeros(1, np.uint8)
    try:
        pull_bytes(os.getpid(), int(own.ctypes.data), 1)
    except OSError as error:
        _log.warning("process_vm_readv is not allowed here (%s); checksums of odd pages are slower", error)
        return False
    return True


class ChunkHasher:
    """Hashes the memory under an iovec array, in order, as far as it is told that the bytes are there."""

    def __init__(self, iov: U64) -> None:
        self._cursor = IovCursor(iov)
        self._state = xxhash.xxh3_64()
        self._scratch = np.empty(_PIECE_BYTES, np.uint8)
        self._grid = _Grid.under(iov)
        self._target = IovCursor(np.array([[self._scratch.ctypes.data, _PIECE_BYTES]], np.uint64))

    @property
    def position(self) -> int:
        """Bytes hashed so far."""
        return self._cursor.position

    def update_to(self, position: int) -> None:
        """Hashes up to a position in the chunk, in bytes."""
        cursor = self._cursor
        while cursor.position < position:
            count = cursor.window(min(_PIECE_BYTES, position - cursor.position))
            first = cursor.first_bytes
            if first >= min(_IN_PLACE_BYTES, count):
                count = first
                self._state.update(_view(cursor.run_address, first))
            elif self._grid and self._grid.holds(cursor):
                self._state.update(self._grid.gather(cursor, self._scratch[:count]))
            elif can_gather():
                self._state.update(self._gather(count))
            else:
                count = first
                self._state.update(_view(cursor.run_address, first))
            cursor.advance(count)

    def value(self) -> int:
        """The checksum of what was hashed."""
        return self._state.intdigest()

    def _gather(self, count: int) -> memoryview:
        self._target.window(count)
        if gather(self._cursor, self._target) != count:
            raise OSError(errno.EFAULT, "a range of the chunk is not mapped")
        return self._scratch.data[:count]


class _Grid:
    """Iovecs whose addresses and lengths are all multiples of one grain, seen as an array of grains.

    The array spans from the first to the last iovec. What lies between them is never touched.
    """

    def __init__(self, base: int, grain: int, grains: int) -> None:
        self._base = base
        self._grain = grain
        self._memory = np.frombuffer(_view(base, grains * grain), np.dtype((np.void, grain)))

    @classmethod
    def under(cls, iov: U64) -> _Grid | None:
        """The grid of an iovec array, None if its grain is too small to be worth it."""
        if iov.shape[0] < 2:
            return None
        base = int(iov[:, 0].min())
        grain = int(np.gcd(np.gcd.reduce(iov[:, 0] - np.uint64(base)), np.gcd.reduce(iov[:, 1])))
        while grain >= 2 * _IN_PLACE_BYTES and grain % 2 == 0:
            grain //= 2
        if not _LEAST_GRAIN_BYTES <= grain <= _PIECE_BYTES:
            return None
        return cls(base, grain, (int((iov[:, 0] + iov[:, 1]).max()) - base) // grain)

    def holds(self, cursor: IovCursor) -> bool:
        """Whether the window begins and ends on the grid; what landed so far may end in the middle of a grain."""
        return not (cursor.shown[[0, -1], 1] % np.uint64(self._grain)).any()

    def gather(self, cursor: IovCursor, into: npt.NDArray[np.uint8]) -> memoryview:
        """Copies the window's grains together, without a call per iovec."""
        window = cursor.shown.astype(np.int64)
        counts = window[:, 1] // self._grain
        firsts = (window[:, 0] - self._base) // self._grain - (np.cumsum(counts) - counts)
        grains = np.repeat(firsts, counts) + np.arange(into.size // self._grain)
        np.take(self._memory, grains, out=into.view(self._memory.dtype), mode="clip")
        return into.data


def _view(address: int, count: int) -> memoryview:
    return memoryview((ctypes.c_ubyte * count).from_address(address)).cast("B")
