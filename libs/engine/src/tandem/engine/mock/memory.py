"""KV memory and metadata rows of one mock rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tandem.core.ids import RoomId
from tandem.core.layout import KvLayout
from tandem.core.pages import I64
from tandem.engine.mock import arithmetic
from tandem.engine.mock.arithmetic import U64
from tandem.engine.mock.settings import MockSettings
from tandem.engine.rank.pools import Pool
from tandem.rdma.api import Buffer

_WORD_BYTES: Final = 8
_ROW_WORDS: Final = 8


@dataclass(frozen=True, slots=True)
class Metadata:
    """What prefill tells decode of a room, beside its KV."""

    room: RoomId
    first_token: int
    prompt_tokens: int
    cached_tokens: int


class RankMemory:
    """One rank's pools: K and V of each layer, each page `page_size` slots of `head_bytes`; and the rows."""

    def __init__(self, settings: MockSettings, rank: int) -> None:
        self._page_size = settings.page_size
        self._slot_words = settings.head_bytes // _WORD_BYTES
        buffers = 2 * settings.layers
        self.kv: U64 = np.zeros((buffers, settings.pages, self._page_size * self._slot_words), dtype=np.uint64)
        """Words [buffers, pages, words of a page]: the K buffers of all layers, then the V buffers."""
        self.rows: U64 = np.zeros((settings.metadata_rows, _ROW_WORDS), dtype=np.uint64)
        self._slots = self.kv.reshape(buffers, settings.pages, self._page_size, self._slot_words)
        self._salts = arithmetic.slot_salts(rank, settings.layers, self._slot_words)
        page_words = self.kv.shape[2]
        self._powers = arithmetic.powers(arithmetic.Q, buffers * page_words).reshape(buffers, page_words)

    def pools(self) -> tuple[Pool, ...]:
        """What the rank registers; the arrays outlive it."""
        buffers = tuple(Buffer(plane.ctypes.data, plane.nbytes) for plane in self.kv)
        items = tuple(plane.nbytes // self.kv.shape[1] for plane in self.kv)
        rows = Buffer(self.rows.ctypes.data, self.rows.nbytes)
        return (
            Pool("kv", buffers, items, self.kv.shape[1]),
            Pool("metadata", (rows,), (_ROW_WORDS * _WORD_BYTES,), self.rows.shape[0]),
        )

    def buffers_of(self, layers: range) -> list[int]:
        """K and V of some layers."""
        half = self.kv.shape[0] // 2
        return [first + layer for first in (0, half) for layer in layers]

    def write(self, pages: I64, start: int, seeds: U64, layers: range) -> None:
        """Computes the KV of tokens start .. start + len(seeds) of a prompt that lies in `pages`, in some layers."""
        place = np.arange(start, start + seeds.size)
        buffers = np.array(self.buffers_of(layers))
        self._slots[buffers[:, None], pages[place // self._page_size], place % self._page_size] = arithmetic.slot_words(
            seeds, self._salts[buffers]
        )

    def blank_tail(self, pages: I64, tokens: int, layers: range) -> None:
        """Zeroes the slots of the last page that the prompt does not fill: they are granted, so they count."""
        used = tokens % self._page_size
        if used:
            self._slots[self.buffers_of(layers), pages[-1], used:] = 0

    def digest(self, pages: I64) -> int:
        """Folds every byte of `pages`, in this order."""
        return arithmetic.rank_digest(self.kv[:, pages], self._powers)

    def write_row(self, row: int, metadata: Metadata) -> None:
        """Fills a metadata row."""
        self.rows[row] = 0
        self.rows[row, :4] = (metadata.room, metadata.first_token, metadata.prompt_tokens, metadata.cached_tokens)

    def read_row(self, row: int) -> Metadata:
        """What lies in a metadata row."""
        room, first, prompt, cached = self.rows[row, :4].tolist()
        return Metadata(RoomId(room), first, prompt, cached)


def layout_of(settings: MockSettings, pools: tuple[Pool, ...]) -> KvLayout:
    """The KV layout that the mock registers."""
    return KvLayout(
        page_size=settings.page_size,
        dtype="mock",
        layers=settings.layers,
        memory_order="nhd",
        tp_size=settings.tp_size,
        pp_size=1,
        pools=tuple(pool.layout for pool in pools),
    )


def digest_over(memories: tuple[RankMemory, ...], pages: I64) -> int:
    """Digest of a prompt over all ranks."""
    return arithmetic.digest_of([memory.digest(pages) for memory in memories])
