"""KV that outlives its sequence: whole pages, each known by all the tokens up to its end.

A sequence that begins like an earlier one holds the pages of that beginning; any number may hold a page. Pages that
nobody holds stay until they are needed for something else, and then the one that was not used for longest goes first.
Whoever uses a page uses all those before it, so that a prefix loses its end first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from tandem.core.kv_index import PageHash, page_hashes
from tandem.core.kv_log import KvLog
from tandem.core.pages import I64
from tandem.engine.mock.entries import Entries


@dataclass(slots=True)
class _Kept:
    page: int
    holders: int = 0


class Prefixes:
    """The pages of one engine that hold prefixes; none if `enabled` is False."""

    def __init__(self, pages: Entries, page_size: int, enabled: bool) -> None:
        self._pages = pages
        self._page_size = page_size
        self._enabled = enabled
        self.log = KvLog(pages.total)
        """What is kept, for who wants to know."""
        self._kept: dict[PageHash, _Kept] = {}
        self._idle: OrderedDict[PageHash, None] = OrderedDict()
        """Of pages that nobody holds, the least recently used first."""

    @property
    def evictable(self) -> int:
        """Pages that are kept and that nobody holds."""
        return len(self._idle)

    def hold(self, tokens: Sequence[int]) -> tuple[PageHash, ...]:
        """Holds the pages that are there of a prompt's beginning, in token order, until they come with `take_back`."""
        found = tuple(takewhile(self._kept.__contains__, self._keys(tokens)))
        for key in found:
            self._kept[key].holders += 1
            self._idle.pop(key, None)
        return found

    def pages(self, keys: Sequence[PageHash]) -> I64:
        """Pages of keys that are held."""
        return np.array([self._kept[key].page for key in keys], dtype=np.int64)

    def make_room(self, count: int) -> bool:
        """Evicts until `count` pages are free. False if that can't be; then nothing was evicted."""
        missing = count - self._pages.free
        if missing > len(self._idle):
            return False
        evicted = [self._idle.popitem(last=False)[0] for _ in range(missing)]
        self._pages.give(np.array([self._kept.pop(key).page for key in evicted], dtype=np.int64))
        self.log.remove(evicted)
        return True

    def take_back(self, held: Sequence[PageHash], own: I64, tokens: Sequence[int] = ()) -> None:
        """Takes a sequence's pages back.

        held: what it held of a prefix; own: its other pages, which follow those.
        tokens: those whose KV the pages hold, all of it right. Pages that they fill are kept, the others freed.
        """
        keys = self._keys(tokens) or held
        unused = own[max(0, len(keys) - len(held)) :].tolist()
        for key, page in zip(keys[len(held) :], own.tolist(), strict=False):
            if key in self._kept:  # another sequence of the same beginning was faster
                unused.append(page)
            else:
                self._kept[key] = _Kept(page)
        for key in held:
            self._kept[key].holders -= 1
        for key in reversed(keys):
            if not self._kept[key].holders:
                self._idle[key] = None
                self._idle.move_to_end(key)
        self._pages.give(np.array(unused, dtype=np.int64))
        self.log.store(keys)

    def _keys(self, tokens: Sequence[int]) -> tuple[PageHash, ...]:
        """Of the pages that these tokens fill."""
        if not self._enabled:
            return ()
        return tuple(page_hashes(tokens, self._page_size, len(tokens)))
