"""Who holds which pages and rows: one account for all ranks, since they allocate in lockstep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tandem.core.kv_index import PageHash
from tandem.core.pages import I64
from tandem.engine.mock.entries import Entries
from tandem.engine.mock.prefixes import Prefixes


@dataclass(frozen=True, slots=True)
class Lease:
    """Pages, in token order, and a metadata row that one room holds."""

    pages: I64
    row: int
    prefix: tuple[PageHash, ...] = ()
    """Of the first pages: they hold the prompt's beginning already, and others may hold them too."""


class Leases:
    """Pages and metadata rows of one engine."""

    def __init__(self, pages: int, rows: int, page_size: int, limit: int, *, keep_prefixes: bool = False) -> None:
        """limit: most leases at the same time."""
        self.pages = Entries(pages)
        self.rows = Entries(rows)
        self.prefixes = Prefixes(self.pages, page_size, keep_prefixes)
        self.count = 0
        self._page_size = page_size
        self._limit = limit

    def pages_for(self, tokens: int) -> int:
        """Pages that `tokens` tokens need."""
        return -(-tokens // self._page_size)

    def take(self, tokens: int, prompt: Sequence[int] = ()) -> Lease | None:
        """A row, and pages for `tokens` tokens; None if they are not free now, or too many rooms hold some.

        prompt: the first of the tokens. What is kept of its beginning is part of the lease.
        """
        if self.count >= self._limit or not self.rows.free:
            return None
        prefix = self.prefixes.hold(prompt)
        need = self.pages_for(tokens) - len(prefix)
        if not self.prefixes.make_room(need):
            self.prefixes.take_back(prefix, np.empty(0, np.int64))
            return None
        self.count += 1
        pages = np.concatenate([self.prefixes.pages(prefix), self.pages.take(need)])
        return Lease(pages, int(self.rows.take(1)[0]), prefix)

    def give(self, lease: Lease, tokens: Sequence[int] = ()) -> None:
        """Takes a lease back. Only once nothing can touch its entries any more.

        tokens: those whose KV its pages hold; where prefixes are kept, the pages that they fill are.
        """
        self.count -= 1
        self.prefixes.take_back(lease.prefix, lease.pages[len(lease.prefix) :], tokens)
        self.rows.give(np.array([lease.row], dtype=np.int64))
