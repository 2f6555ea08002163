"""Which entries of a pool are free."""

from __future__ import annotations

import numpy as np

from tandem.core.pages import I64


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
