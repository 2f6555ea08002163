"""The checksum of a chunk: XXH3-64 over its bytes in the order of its ranges.

Hashing in the cache costs little beside the call that does it. So small pages are first gathered into a scratch that
stays in the cache, without a call per page, and whoever lands or sends bytes has them hashed before they leave it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import xxhash

from tandem.rdma.api import U64
from tandem.rdma.iov import IovCursor

HASH_STEP_BYTES = 512 * 1024
"""Who lands or sends bytes hashes them in steps of about this size: they are in the cache then."""
_SCRATCH_BYTES = 128 * 1024
_IN_PLACE_BYTES = 16 * 1024
"""Pages of at least this size are hashed where they lie. (Up to 64 KiB that keeps the GIL, for about a millisecond per
16 MiB, where a gathering would release it; it takes a fifth less time, though.)"""
_LEAST_GRAIN_BYTES = 256
"""Pages on a finer grid are hashed where they lie, too: its index would be long."""


class ChunkHasher:
    """Hashes the memory under an iovec array, in order, as far as it is told that the bytes are there."""

    def __init__(self, iov: U64) -> None:
        self._cursor = IovCursor(iov)
        self._state = xxhash.xxh3_64()
        self._base = int(iov[:, 0].min()) if iov.size else 0
        span_bytes = int((iov[:, 0] + iov[:, 1]).max()) - self._base if iov.size else 0
        self._span = _view(self._base, span_bytes)
        """From the first byte to the last. What lies between the iovecs is never touched."""
        small = self._cursor.total < _IN_PLACE_BYTES * iov.shape[0]
        self._grid = _Grid.under(iov, self._span) if small else None

    @property
    def position(self) -> int:
        """Bytes hashed so far, but for a part of a page that may be left for later."""
        return self._cursor.position

    def update_to(self, position: int) -> None:
        """Hashes up to a position in the chunk, in bytes."""
        cursor = self._cursor
        if self._grid:
            for piece in self._grid.gathered(cursor.position, position):
                self._state.update(piece)
            cursor.seek(position)
        while cursor.position < position:
            count = cursor.window(position - cursor.position)
            for address, size in cursor.shown.tolist():
                start = address - self._base
                self._state.update(self._span[start : start + size])
            cursor.advance(count)

    def value(self) -> int:
        """The checksum of what was hashed."""
        return self._state.intdigest()


class _Grid:
    """Iovecs on a grid, whose grain is a power of 2 that all addresses and lengths are multiples of: they become
    indices into an array of grains."""

    def __init__(self, iov: U64, span: memoryview, grain: int) -> None:
        self._grain = grain
        self._memory = np.frombuffer(span, np.dtype((np.void, grain)))
        counts = iov[:, 1].view(np.intp) // grain
        self._index: npt.NDArray[np.intp] = (iov[:, 0] - iov[:, 0].min()).view(np.intp) // grain
        if int(counts.max()) > 1:  # an iovec of several grains: its first, and those that follow
            ends = np.cumsum(counts)
            self._index = np.repeat(self._index - (ends - counts), counts) + np.arange(ends[-1])
        self._scratch = np.empty(_SCRATCH_BYTES // grain, self._memory.dtype)

    @classmethod
    def under(cls, iov: U64, span: memoryview) -> _Grid | None:
        """The grid of an iovec array; None if it is too fine."""
        bits = int(np.bitwise_or.reduce(iov[:, 0] - iov[:, 0].min()) | np.bitwise_or.reduce(iov[:, 1]))
        grain = bits & -bits
        return cls(iov, span, grain) if grain >= _LEAST_GRAIN_BYTES else None

    def gathered(self, start: int, end: int) -> Iterator[memoryview]:
        """The whole grains up to `end` after those up to `start`, in pieces; each lasts until the next is asked for."""
        step = self._scratch.size
        for first in range(start // self._grain, end // self._grain, step):
            index = self._index[first : min(first + step, end // self._grain)]
            piece = self._scratch[: index.size]
            np.take(self._memory, index, out=piece, mode="clip")  # "raise" would copy once more
            yield piece.view(np.uint8).data


def _view(address: int, count: int) -> memoryview:
    return memoryview((ctypes.c_ubyte * count).from_address(address)).cast("B")
