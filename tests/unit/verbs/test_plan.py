"""How a write is cut: every byte goes where it belongs, in order, and no segment leaves a buffer or a piece."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tandem.core.pages import Ranges
from tandem.rdma.api import Buffer
from tandem.rdma.memory import Memory
from tandem.rdma.verbs.plan import bytes_of_piece, cut, piece_count

FAR = 1 << 20
"""Buffers lie so far apart that no two of them touch."""


def memory_of(sizes: list[int]) -> Memory:
    return Memory([Buffer((n + 1) * FAR, size) for n, size in enumerate(sizes)])


def address_of(sizes: list[int], offset: int) -> int:
    """The address of one byte, in plain Python."""
    for n, size in enumerate(sizes):
        if offset < size:
            return (n + 1) * FAR + offset
        offset -= size
    raise AssertionError


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(st.data(), sizes, sizes, st.integers(1, 50))
def test_every_byte_goes_where_it_belongs(data: st.DataObject, ours: list[int], theirs: list[int], piece: int) -> None:
    ranges = []
    for _ in range(data.draw(st.integers(0, 6))):
        length = data.draw(st.integers(1, min(sum(ours), sum(theirs))))
        src = data.draw(st.integers(0, sum(ours) - length))
        dst = data.draw(st.integers(0, sum(theirs) - length))
        ranges.append((src, dst, length))
    src, dst, lengths = (np.array([part[n] for part in ranges], np.uint64) for n in range(3))
    segments = cut(Ranges(src, dst, lengths), memory_of(ours), memory_of(theirs), piece)

    expected = [(address_of(ours, a + n), address_of(theirs, b + n)) for a, b, length in ranges for n in range(length)]
    found = [
        (int(local) + n, int(remote) + n)
        for local, remote, length in zip(segments.local, segments.remote, segments.lengths, strict=True)
        for n in range(int(length))
    ]
    assert found == expected
    for segment in range(segments.lengths.size):
        for base, buffer, many in (
            (segments.local, segments.local_buffer, ours),
            (segments.remote, segments.remote_buffer, theirs),
        ):
            start = int(base[segment]) - (int(buffer[segment]) + 1) * FAR
            assert start >= 0
            assert start + int(segments.lengths[segment]) <= many[int(buffer[segment])]

    total = int(lengths.sum())
    firsts = segments.piece_first.tolist()
    assert len(firsts) == piece_count(total, piece) + 1
    assert firsts[-1] == segments.lengths.size
    for number in range(len(firsts) - 1):
        size = int(segments.lengths[firsts[number] : firsts[number + 1]].sum())
        assert size == bytes_of_piece(total, piece, number)


def test_ranges_that_stay_inside_are_not_cut() -> None:
    ranges = Ranges(*(np.array(values, np.uint64) for values in ([0, 8], [4, 0], [4, 4])))
    segments = cut(ranges, memory_of([16]), memory_of([16]), 1 << 20)
    assert segments.lengths.tolist() == [4, 4]
    assert segments.piece_first.tolist() == [0, 2]
