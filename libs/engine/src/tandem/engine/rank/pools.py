"""Pools of a rank, and where their entries lie in the flat memory that the data path knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.layout import KvLayout, PoolLayout
from tandem.core.pages import I64, Ranges, expand
from tandem.rdma.api import Buffer

KV_POOL = 0
"""Index of the KV pool in every layout."""
METADATA_POOL = 1
"""Index of the metadata rows in every layout; state components follow."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Entries that move together: entry i is item_bytes[b] bytes at i * item_bytes[b] of each buffer b."""

    name: str
    buffers: tuple[Buffer, ...]
    item_bytes: tuple[int, ...]
    entries: int

    def __post_init__(self) -> None:
        for buffer, item in zip(self.buffers, self.item_bytes, strict=True):
            if buffer.bytes != item * self.entries:
                raise TandemError(
                    ErrorReason.INVALID_ARGUMENT,
                    f"pool {self.name}: a buffer has {buffer.bytes} bytes, {self.entries} entries need "
                    f"{item * self.entries}",
                )

    @property
    def layout(self) -> PoolLayout:
        """What a peer needs to know of it."""
        return PoolLayout(self.name, self.item_bytes, self.entries)


class PoolMap:
    """Offsets of every pool's buffers in a memory that lays them end to end, in the layout's order.

    Both sides of a link compute the other's map from its layout, so no address ever travels.
    """

    def __init__(self, layout: KvLayout) -> None:
        self._pools = layout.pools
        self._items = [np.array(pool.item_bytes, dtype=np.int64) for pool in layout.pools]
        self._bases: list[I64] = []
        end = 0
        for pool, items in zip(layout.pools, self._items, strict=True):
            sizes = items * pool.entries
            self._bases.append(end + np.cumsum(sizes) - sizes)
            end += int(sizes.sum())
        self.bytes = end
        """Bytes of all pools."""

    def name(self, pool: int) -> str:
        """Name of one pool."""
        return self._pools[pool].name

    def entries(self, pool: int) -> int:
        """Entries of one pool. Raises TandemError(PROTOCOL_VIOLATION) if there is no such pool."""
        if not 0 <= pool < len(self._pools):
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"pool {pool} of {len(self._pools)}")
        return self._pools[pool].entries

    def entry_bytes(self, pool: int) -> int:
        """Bytes of one entry over all buffers of one pool."""
        return self._pools[pool].entry_bytes

    def buffers(self, pool: int) -> int:
        """Buffers of one pool."""
        return self._items[pool].size

    def move(self, other: PoolMap, pool: int, ours: I64, theirs: I64, buffers: I64 | None = None) -> Ranges:
        """Byte ranges that move entries `ours` of this map to entries `theirs` of another, in order.

        buffers: those of the pool that are moved; None = all.
        """
        bases, other_bases, items = self._bases[pool], other._bases[pool], self._items[pool]
        if buffers is not None:
            bases, other_bases, items = bases[buffers], other_bases[buffers], items[buffers]
        return expand(ours, theirs, bases, other_bases, items)

    def own(self, entries: Sequence[I64]) -> Ranges:
        """Byte ranges of entries of this map: entries[p] for pool p."""
        return concat([self.move(self, pool, index, index) for pool, index in enumerate(entries) if index.size])


def concat(parts: Sequence[Ranges]) -> Ranges:
    """Ranges one after another."""
    if not parts:
        empty = np.empty(0, np.uint64)
        return Ranges(empty, empty, empty)
    return Ranges(
        np.concatenate([part.src for part in parts]),
        np.concatenate([part.dst for part in parts]),
        np.concatenate([part.lengths for part in parts]),
    )
