"""The flat offset space over an endpoint's buffers, and iovec arrays over it.

All of it is numpy; nothing here loops in Python over ranges. An iovec array is u64 of shape [n, 2], a row being
(address, bytes): the layout of C's `struct iovec`, so that a pointer to it goes straight to the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.api import U64, Buffer

MAX_BUFFERS = 1 << 16
"""Most buffers in one memory: bounds the table that a sender shows to its peer."""


class Memory:
    """Buffers laid end to end: byte 0 of the second one has the offset after the last byte of the first."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        """Raises TandemError(INVALID_ARGUMENT) for no buffer, too many, or one without an address or bytes."""
        if not 1 <= len(buffers) <= MAX_BUFFERS:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT, f"a memory has 1..{MAX_BUFFERS} buffers, not {len(buffers)}"
            )
        if any(buffer.address < 1 or buffer.bytes < 1 for buffer in buffers):
            raise TandemError(ErrorReason.INVALID_ARGUMENT, "each buffer needs an address and at least 1 byte")
        self._bases = np.array([buffer.address for buffer in buffers], dtype=np.uint64)
        self._ends = np.cumsum(np.array([buffer.bytes for buffer in buffers], dtype=np.uint64), dtype=np.uint64)
        self._starts = np.concatenate((np.zeros(1, np.uint64), self._ends[:-1]))
        self._shifts = self._bases - self._starts
        """From an offset to its address, modulo 2**64."""
        self.bytes = int(self._ends[-1])
        self.dmabufs = tuple(buffer.dmabuf for buffer in buffers)
        """How a device reaches each buffer, where that is not its address in this process."""

    def table(self) -> U64:
        """The buffers as rows (address, bytes), as a peer needs them to read this memory."""
        return np.stack((self._bases, self._ends - self._starts), axis=1)

    def contains(self, offsets: U64, lengths: U64) -> bool:
        """Whether every range lies inside."""
        size = np.uint64(self.bytes)
        return bool((offsets <= size).all() and (lengths <= size - offsets).all())

    def buffer_of(self, offsets: U64) -> npt.NDArray[np.intp]:
        """The buffer that each offset lies in."""
        return self._starts.searchsorted(offsets, "right") - 1

    def buffer_of_whole(self, offsets: U64, lengths: U64) -> npt.NDArray[np.intp] | None:
        """The buffer that each range lies in; None if one of them goes on into the next."""
        buffers = self.buffer_of(offsets)
        return None if bool((offsets + lengths > self._ends[buffers]).any()) else buffers

    def addresses(self, offsets: U64, buffers: npt.NDArray[np.intp]) -> U64:
        """Addresses of offsets that lie in these buffers."""
        return offsets + self._shifts[buffers]

    def crossings(self, offsets: U64, lengths: U64) -> tuple[npt.NDArray[np.intp], U64]:
        """Where ranges cross from one buffer into the next: the range, and the offset of the border, for each."""
        first, last = self.buffer_of(offsets), self.buffer_of(offsets + lengths - np.uint64(1))
        count = last - first
        owner = np.repeat(np.arange(count.size), count)
        within = np.arange(owner.size) - np.repeat(np.cumsum(count) - count, count)
        return owner, self._ends[first[owner] + within]

    def iov(self, offsets: U64, lengths: U64) -> U64:
        """Iovecs over ranges that lie inside: split where a range crosses buffers, merged where addresses touch."""
        if lengths.size and int(lengths.min()) == 0:
            offsets, lengths = offsets[lengths > 0], lengths[lengths > 0]
        if not offsets.size:
            return np.empty((0, 2), np.uint64)
        buffer = self.buffer_of_whole(offsets, lengths)
        if buffer is None:
            buffer, offsets, lengths = self._split(self.buffer_of(offsets), offsets, lengths)
        return _merge_touching(self.addresses(offsets, buffer), lengths)

    def _split(self, first: npt.NDArray[np.intp], offsets: U64, lengths: U64) -> tuple[npt.NDArray[np.intp], U64, U64]:
        """Cuts ranges that begin in the buffers `first` at the borders of buffers; gives the buffer, offset and length
        of each part, in order."""
        last = self.buffer_of(offsets + lengths - np.uint64(1))
        parts = last - first + 1
        owner = np.repeat(np.arange(parts.size), parts)
        within = np.arange(owner.size) - np.repeat(np.cumsum(parts) - parts, parts)
        buffer = first[owner] + within
        low = np.maximum(offsets[owner], self._starts[buffer])
        high = np.minimum(offsets[owner] + lengths[owner], self._ends[buffer])
        return buffer, low, high - low


def as_offsets(values: npt.ArrayLike) -> U64:
    """A private u64 copy of offsets or lengths, one dimension.

    Raises TandemError(INVALID_ARGUMENT) for negative, fractional or many-dimensional values.
    """
    array = np.array(values)
    if array.ndim == 1 and array.dtype == np.uint64:
        return array
    if array.ndim != 1 or (array.size and (array.dtype.kind not in "ui" or int(array.min()) < 0)):
        raise TandemError(ErrorReason.INVALID_ARGUMENT, "offsets and lengths are one-dimensional whole numbers from 0")
    return array.astype(np.uint64, copy=False)


def _merge_touching(addresses: U64, lengths: U64) -> U64:
    apart = addresses[:-1] + lengths[:-1] != addresses[1:]
    if not apart.all():
        first = np.flatnonzero(np.concatenate((np.ones(1, bool), apart)))
        addresses, lengths = addresses[first], np.add.reduceat(lengths, first)
    return np.column_stack((addresses, lengths))
