"""A write as RDMA writes: cut where either side's buffers end, and into pieces. Pure, and numpy throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tandem.core.pages import I64, U32, Ranges
from tandem.rdma.api import U64
from tandem.rdma.memory import Memory

Index = npt.NDArray[np.intp]

MAX_PIECE_BYTES: Final = 1 << 30
"""Most bytes in one piece: half of the largest message that the field allows, so that a segment always fits one."""


@dataclass(frozen=True, slots=True)
class Segments:
    """A write as n RDMA writes, in order, each inside one buffer of either side and inside one piece."""

    local: U64
    """Source addresses [n]."""
    local_buffer: Index
    """Buffer that each lies in [n]: the index of its lkey."""
    remote: U64
    """Destination addresses [n]."""
    remote_buffer: Index
    """Buffer that each lies in [n]: the index of its rkey."""
    lengths: U32
    """Bytes [n]."""
    piece_first: I64
    """First segment of each piece, and n at the end [pieces + 1]."""


def piece_count(total: int, piece_bytes: int) -> int:
    """Pieces of a write; both sides compute it."""
    return -(-total // piece_bytes)


def bytes_of_piece(total: int, piece_bytes: int, piece: int) -> int:
    """Bytes of one piece: all but the last are full."""
    return min(piece_bytes, total - piece * piece_bytes)


def cut(ranges: Ranges, local: Memory, remote: Memory, piece_bytes: int) -> Segments:
    """Cuts ranges that lie inside both memories. piece_bytes: 1..MAX_PIECE_BYTES; none of the ranges is empty."""
    local_buffer = local.buffer_of_whole(ranges.src, ranges.lengths)
    remote_buffer = remote.buffer_of_whole(ranges.dst, ranges.lengths)
    if local_buffer is None or remote_buffer is None or ranges.bytes > piece_bytes:
        return _cut_anywhere(ranges, local, remote, piece_bytes)
    count = ranges.lengths.size
    return Segments(
        local=local.addresses(ranges.src, local_buffer),
        local_buffer=local_buffer,
        remote=remote.addresses(ranges.dst, remote_buffer),
        remote_buffer=remote_buffer,
        lengths=ranges.lengths.astype(np.uint32),
        piece_first=np.array([0, count] if count else [0], np.int64),
    )


def _cut_anywhere(ranges: Ranges, local: Memory, remote: Memory, piece_bytes: int) -> Segments:
    """Cuts ranges of which some reach over a border, of a buffer or of a piece."""
    lengths = ranges.lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    begins = ends - lengths
    inner = np.arange(piece_bytes, total, piece_bytes, dtype=np.int64)
    crossings = [
        begins[owner] + (borders - offsets[owner]).astype(np.int64)
        for offsets, (owner, borders) in (
            (ranges.src, local.crossings(ranges.src, ranges.lengths)),
            (ranges.dst, remote.crossings(ranges.dst, ranges.lengths)),
        )
    ]
    cuts = np.concatenate((ends, inner, *crossings))
    points = ends if cuts.size == ends.size else np.unique(cuts)
    starts = np.concatenate((np.zeros(1, np.int64), points[:-1])) if points.size else points
    owner = np.searchsorted(ends, starts, "right")
    within = (starts - begins[owner]).astype(np.uint64)
    src, dst = ranges.src[owner] + within, ranges.dst[owner] + within
    local_buffer, remote_buffer = local.buffer_of(src), remote.buffer_of(dst)
    pieces = np.arange(piece_count(total, piece_bytes), dtype=np.int64) * piece_bytes
    return Segments(
        local=local.addresses(src, local_buffer),
        local_buffer=local_buffer,
        remote=remote.addresses(dst, remote_buffer),
        remote_buffer=remote_buffer,
        lengths=(points - starts).astype(np.uint32),
        piece_first=np.append(np.searchsorted(starts, pieces), starts.size).astype(np.int64),
    )
