"""Who holds which pages and rows: one account for all ranks, since they allocate in lockstep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tandem.core.pages import I64


@dataclass(frozen=True, slots=True)
class Lease:
    """Pages, in token order, and a metadata row that one room holds."""

    pages: I64
    row: int


class Entries:
    """The free entries of one pool. Freed ones are reused first, so that stale bytes show soon."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free: list[int] = list(range(total - 1, -1, -1))
        self._taken = np.zeros(total, dtype=np.bool_)

    @property
    def free(self) -> int:
        """Entries that nobody holds."""
        return len(self._free)

    def take(self, count: int) -> I64:
        """Takes `count` entries; the caller has looked that they are free."""
        taken = np.array(self._free[len(self._free) - count :][::-1], dtype=np.int64)
        del self._free[len(self._free) - count :]
        self._taken[taken] = True
        return taken

    def give(self, entries: I64) -> None:
        """Takes entries back."""
        if not self._taken[entries].all():
            raise AssertionError(f"entries {entries[~self._taken[entries]].tolist()} were freed twice")
        self._taken[entries] = False
        self._free.extend(entries[::-1].tolist())


class Leases:
    """Pages and metadata rows of one engine."""

    def __init__(self, pages: int, rows: int, page_size: int, limit: int) -> None:
        """limit: most leases at the same time."""
        self.pages = Entries(pages)
        self.rows = Entries(rows)
        self.count = 0
        self._page_size = page_size
        self._limit = limit

    def pages_for(self, tokens: int) -> int:
        """Pages that `tokens` tokens need."""
        return -(-tokens // self._page_size)

    def take(self, tokens: int) -> Lease | None:
        """A row, and pages for `tokens` tokens; None if they are not free now, or too many rooms hold some."""
        need = self.pages_for(tokens)
        if self.count >= self._limit or need > self.pages.free or not self.rows.free:
            return None
        self.count += 1
        return Lease(self.pages.take(need), int(self.rows.take(1)[0]))

    def give(self, lease: Lease) -> None:
        """Takes a lease back. Only once nothing can touch its entries any more."""
        self.count -= 1
        self.pages.give(lease.pages)
        self.rows.give(np.array([lease.row], dtype=np.int64))
