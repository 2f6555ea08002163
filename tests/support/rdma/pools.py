"""Pools with known contents, and endpoints over them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tandem.rdma import Buffer

Bytes = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

BUFFERS = 3
"""A pool is cut into this many buffers, so that ranges cross borders."""


def random_pool(count: int, seed: int) -> Bytes:
    """Random bytes that another process can make again."""
    words = np.random.default_rng(seed).integers(0, 2**64, -(-count // 8), dtype=np.uint64)
    return words.view(np.uint8)[:count]


def buffers_of(pool: Bytes) -> list[Buffer]:
    """The pool as unequal buffers, in order."""
    cuts = sorted({0, pool.size // 7, pool.size // 2, pool.size})
    return [Buffer(int(pool.ctypes.data) + a, b - a) for a, b in pairwise(cuts)]


def u64(*values: int) -> U64:
    """Some offsets or lengths."""
    return np.array(values, np.uint64)


def moved(source: Bytes, target: Bytes, src: U64, dst: U64, lengths: U64) -> Bytes:
    """What the target must look like after a write: computed range by range, in plain Python."""
    expected = target.copy()
    for a, b, n in zip(src.tolist(), dst.tolist(), lengths.tolist(), strict=True):
        expected[b : b + n] = source[a : a + n]
    return expected
