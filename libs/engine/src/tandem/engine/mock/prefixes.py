"""KV that outlives its sequence: whole pages, each known by all the tokens up to its end.

A sequence that begins like an earlier one holds the pages of that beginning; any number may hold a page. Pages that
nobody holds stay until they are needed for something else, and then the one that was not used for longest goes first.
Whoever uses a page uses all those before it, so that a prefix loses its end first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import takewhile
from typing import NewType

import numpy as np

from tandem.core.pages import I64
from tandem.engine.mock.entries import Entries

PageKey = NewType("PageKey", bytes)
"""Digest of a prompt's tokens up to the end of a page."""


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
        self._kept: dict[PageKey, _Kept] = {}
        self._idle: OrderedDict[PageKey, None] = OrderedDict()
        """Of pages that nobody holds, the least recently used first."""

    @property
    def evictable(self) -> int:
        """Pages that are kept and that nobody holds."""
        return len(self._idle)

    def hold(self, tokens: Sequence[int]) -> tuple[PageKey, ...]:
        """Holds the pages that are there of a prompt's beginning, in token order, until they come with `take_back`."""
        found = tuple(takewhile(self._kept.__contains__, self._keys(tokens)))
        for key in found:
            self._kept[key].holders += 1
            self._idle.pop(key, None)
        return found

    def pages(self, keys: Sequence[PageKey]) -> I64:
        """Pages of keys that are held."""
        return np.array([self._kept[key].page for key in keys], dtype=np.int64)

    def make_room(self, count: int) -> bool:
        """Evicts until `count` pages are free. False if that can't be; then nothing was evicted."""
        missing = count - self._pages.free
        if missing > len(self._idle):
            return False
        for _ in range(missing):
            key, _ = self._idle.popitem(last=False)
            self._pages.give(np.array([self._kept.pop(key).page], dtype=np.int64))
        return True

    def take_back(self, held: Sequence[PageKey], own: I64, tokens: Sequence[int] = ()) -> None:
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

    def _keys(self, tokens: Sequence[int]) -> tuple[PageKey, ...]:
        """Of the pages that these tokens fill."""
        if not self._enabled:
            return ()
        digest, size, keys = blake2b(digest_size=16), self._page_size, []
        ids = np.array(tokens, dtype=np.uint32)
        for end in range(size, ids.size + 1, size):
            digest.update(ids[end - size : end].tobytes())
            keys.append(PageKey(digest.digest()))
        return tuple(keys)
