"""Runs of pages: how page lists are packed for the wire and expanded into byte ranges.

All of it is numpy; nothing here loops in Python over pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tandem.core.errors import ErrorReason, TandemError

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]

MAX_PAGES: Final = 1 << 22
"""Most pages in one list: bounds what a peer can make us expand."""


@dataclass(frozen=True, slots=True)
class PageRuns:
    """Pages in token order as runs [start, start + length)."""

    starts: U32
    lengths: U32

    @property
    def pages(self) -> int:
        """Pages in all runs."""
        return int(self.lengths.sum(dtype=np.int64))


def pack_runs(pages: npt.ArrayLike) -> PageRuns:
    """Packs page indices (any integer dtype, token order) into runs of consecutive indices."""
    index = np.ascontiguousarray(pages, dtype=np.int64)
    if index.size == 0:
        empty = np.empty(0, np.uint32)
        return PageRuns(empty, empty)
    breaks = np.flatnonzero(np.diff(index) != 1) + 1
    first = np.concatenate(([0], breaks))
    lengths = np.diff(np.concatenate((first, [index.size])))
    return PageRuns(index[first].astype(np.uint32), lengths.astype(np.uint32))


def unpack_runs(starts: npt.ArrayLike, lengths: npt.ArrayLike, entries: int) -> I64:
    """Expands runs into page indices.

    Raises TandemError(PROTOCOL_VIOLATION) for runs of unequal count, an empty run, a run that leaves
    0..entries-1, or more than MAX_PAGES pages.
    """
    start = np.asarray(starts, dtype=np.int64)
    length = np.asarray(lengths, dtype=np.int64)
    if start.shape != length.shape:
        raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"{start.size} run starts but {length.size} run lengths")
    if start.size == 0:
        return np.empty(0, np.int64)
    total = int(length.sum())
    if length.min() < 1 or total > MAX_PAGES:
        raise TandemError(
            ErrorReason.PROTOCOL_VIOLATION, f"runs must have 1..{MAX_PAGES} pages in all, each at least 1"
        )
    if start.min() < 0 or int((start + length).max()) > entries:
        raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"page run leaves the pool of {entries} entries")
    offsets = np.cumsum(length) - length
    return np.repeat(start - offsets, length) + np.arange(total)


def rest_of_prompt(prompt_tokens: int, prefix_tokens: int, page_size: int) -> int:
    """Pages of a prompt behind a prefix that decode holds already. None are left where it holds the whole prompt.

    Raises TandemError(PROTOCOL_VIOLATION) for a prefix that is longer than the prompt, or does not end with a page.
    """
    if not 0 <= prefix_tokens <= prompt_tokens:
        raise TandemError(
            ErrorReason.PROTOCOL_VIOLATION, f"a prefix of {prefix_tokens} tokens of a prompt of {prompt_tokens}"
        )
    if prefix_tokens % page_size:
        raise TandemError(
            ErrorReason.PROTOCOL_VIOLATION,
            f"a prefix of {prefix_tokens} tokens does not end with a page of {page_size} tokens",
        )
    return -(-(prompt_tokens - prefix_tokens) // page_size)


@dataclass(frozen=True, slots=True)
class Ranges:
    """Byte ranges of one write: source and destination offsets and lengths, all of the same count."""

    src: U64
    dst: U64
    lengths: U64

    @property
    def bytes(self) -> int:
        """Bytes in all ranges."""
        return int(self.lengths.sum(dtype=np.uint64))


def expand(src_pages: I64, dst_pages: I64, src_bases: I64, dst_bases: I64, item_bytes: I64) -> Ranges:
    """Byte ranges that move pages of one pool, buffer by buffer, contiguous runs merged.

    src_pages, dst_pages: page indices [n] on each side, in token order.
    src_bases, dst_bases: offset of each buffer [b] in its memory, in bytes.
    item_bytes: bytes of one page in each buffer [b].
    A run is merged where pages are consecutive on both sides.
    """
    if src_pages.size != dst_pages.size:
        raise TandemError(
            ErrorReason.PROTOCOL_VIOLATION, f"{src_pages.size} source pages for {dst_pages.size} granted pages"
        )
    if src_pages.size == 0:
        empty = np.empty(0, np.uint64)
        return Ranges(empty, empty, empty)
    breaks = np.flatnonzero((np.diff(src_pages) != 1) | (np.diff(dst_pages) != 1)) + 1
    first = np.concatenate(([0], breaks))
    count = np.diff(np.concatenate((first, [src_pages.size])))
    src = src_bases[:, None] + src_pages[first][None, :] * item_bytes[:, None]
    dst = dst_bases[:, None] + dst_pages[first][None, :] * item_bytes[:, None]
    lengths = count[None, :] * item_bytes[:, None]
    return Ranges(src.ravel().astype(np.uint64), dst.ravel().astype(np.uint64), lengths.ravel().astype(np.uint64))


def merge_ranges(ranges: Ranges) -> Ranges:
    """Merges neighbours that are contiguous on both sides; order is kept."""
    if ranges.src.size < 2:
        return ranges
    src, dst, lengths = ranges.src, ranges.dst, ranges.lengths
    joined = (src[:-1] + lengths[:-1] == src[1:]) & (dst[:-1] + lengths[:-1] == dst[1:])
    if not joined.any():
        return ranges
    first = np.concatenate(([0], np.flatnonzero(~joined) + 1))
    return Ranges(src[first], dst[first], np.add.reduceat(lengths, first))
