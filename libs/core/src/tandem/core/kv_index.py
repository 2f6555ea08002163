"""Who holds which pages of KV: a router's index of every worker's prefix cache.

A page is known by a hash of all tokens up to its end, so that equal hashes stand for equal beginnings of prompts and
nobody has to be told which page comes before which. The hash is that of SGLang's own events: SHA-256 over the digest of
the page before and the page's token ids, of which the first 64 bits travel.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, NewType

import numpy as np
from numpy.typing import NDArray

from tandem.core.ids import WorkerLife

PageHash = NewType("PageHash", int)
"""A page, by all tokens up to its end; 64 bits."""

MAX_PAGES_MATCHED: Final = 2048
"""Pages of a prompt that are looked up: what is held beyond them makes no difference."""
_FEW: Final = 16
"""So many bits of a number are found sooner one by one than in an array."""
_TOKEN_BYTES: Final = 4
_HASH_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class KvChange:
    """News of one worker's prefix cache: first it is `cleared`, then pages are `removed`, then `stored`."""

    sequence: int
    """Number of this change among all that a follower gets, from 0, without gaps."""
    removed: tuple[PageHash, ...] = ()
    stored: tuple[PageHash, ...] = ()
    """None of them is in `removed`."""
    cleared: bool = False
    """What was said before is void: a snapshot begins. True for the first change."""


def page_hashes(ids: Sequence[int], page_size: int, limit: int = MAX_PAGES_MATCHED) -> list[PageHash]:
    """The full pages of a prompt, in order, at most `limit`. ids: tokens, 0..2^32-1."""
    count = min(len(ids) // page_size, limit)
    packed, step = array("I", ids[: count * page_size]).tobytes(), page_size * _TOKEN_BYTES
    digest, found = b"", []
    for start in range(0, count * step, step):
        digest = sha256(digest + packed[start : start + step]).digest()
        found.append(hash_of_digest(digest))
    return found


def hash_of_digest(digest: bytes) -> PageHash:
    """The hash of a page, of the SHA-256 of all tokens up to its end."""
    return PageHash(int.from_bytes(digest[:_HASH_BYTES], "big"))


@dataclass(frozen=True, slots=True)
class KvMatch:
    """Who holds how many of the first pages of one prompt."""

    _levels: Sequence[tuple[int, int]] = ()
    """Pages and the lives that hold these and no more, as bits; most pages first."""
    _slots: Mapping[WorkerLife, int] = field(default_factory=dict)
    lives: tuple[WorkerLife | None, ...] = ()
    """Those that the index knows, by their bits; the same object until others do."""

    @property
    def most(self) -> int:
        """The most pages that a worker holds."""
        return self._levels[0][0] if self._levels else 0

    def pages_of(self, life: WorkerLife) -> int:
        """How many of them a worker holds."""
        slot = self._slots.get(life)
        if slot is not None:
            for depth, lives in self._levels:
                if lives >> slot & 1:
                    return depth
        return 0

    def levels(self, places: NDArray[np.intp]) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """Pages, and the places of those that hold as many, rising; most pages first, and only what somebody holds.

        places: of each of `lives`, -1 for those that do not count.
        """
        for depth, holders in self._levels:
            found = places[_bits_of(holders)]
            found = found[found >= 0]
            if found.size:
                found.sort()
                yield depth, found


def _bits_of(number: int) -> NDArray[np.intp] | list[int]:
    """Places of the bits that are set."""
    if number.bit_count() > _FEW:
        octets = np.frombuffer(number.to_bytes(-(-number.bit_length() // 8), "little"), np.uint8)
        many: NDArray[np.intp] = np.unpackbits(octets, bitorder="little").nonzero()[0]
        return many
    found = []
    while number:
        lowest = number & -number
        found.append(lowest.bit_length() - 1)
        number ^= lowest
    return found


NOTHING_HELD: Final = KvMatch()


class KvIndex:
    """The pages that each life of each worker holds, as far as it has told.

    It may know too little, as when it is full: then a router chooses worse, and nothing else happens.
    """

    def __init__(self, max_entries: int) -> None:
        """max_entries: most pages over all workers; of what comes beyond, nothing is kept."""
        self._max_entries = max_entries
        self._lives: tuple[WorkerLife | None, ...] = ()
        """By slot: the bit that stands for a life in `_holders`. Another object whenever they change."""
        self._slots: dict[WorkerLife, int] = {}
        self._pages: dict[WorkerLife, set[PageHash]] = {}
        self._due: dict[WorkerLife, int] = {}
        """Number of the next change of each life."""
        self._holders: dict[PageHash, int] = {}
        """Lives that hold a page, as bits."""
        self._entries = 0
        self.not_kept = 0
        """Pages that there was no place for, since the start."""
        self.gaps = 0
        """Changes that were missed, since the start."""
        self.changes = 0
        """What was said or forgotten, since the start."""

    @property
    def entries(self) -> int:
        """Pages over all workers; one that two hold counts twice."""
        return self._entries

    def apply(self, life: WorkerLife, change: KvChange) -> bool:
        """Takes news of a worker. False if some before it were missed: then nothing is known of the worker, and it has
        to be followed anew."""
        self.changes += 1
        if change.cleared:
            self.forget(life)
            self._admit(life)
        elif self._due.get(life) != change.sequence:
            self.gaps += 1
            self.forget(life)
            return False
        self._due[life] = change.sequence + 1
        self._remove(life, change.removed)
        self._store(life, change.stored)
        return True

    def forget(self, life: WorkerLife) -> None:
        """A worker is gone, or its news have ended."""
        self.changes += 1
        if life in self._slots:
            self._remove(life, tuple(self._pages[life]))
            self._set(self._slots.pop(life), None)
            del self._pages[life], self._due[life]

    def match(self, runs: Iterable[Sequence[PageHash]]) -> KvMatch:
        """Who holds how many of the first pages of a prompt. Cheap: lives are only counted out where they are asked
        for. To be used before the next change.

        runs: the pages in order, some at a time. Caches evict from the end, so who holds all before a run, and the last
        page of it, is taken to hold all of it.
        """
        levels: list[tuple[int, int]] = []
        holders, still, depth = self._holders, -1, 0
        for run in runs:
            if still & holders.get(run[-1], 0) == still:
                depth += len(run)
                continue
            for page in run:
                now = still & holders.get(page, 0)
                if now != still and depth:
                    levels.append((depth, still & ~now))
                if not now:
                    return KvMatch(levels[::-1], self._slots, self._lives)
                still, depth = now, depth + 1
        if depth:
            levels.append((depth, still))
        return KvMatch(levels[::-1], self._slots, self._lives)

    def _admit(self, life: WorkerLife) -> None:
        slot = next((slot for slot, taken in enumerate(self._lives) if taken is None), len(self._lives))
        self._set(slot, life)
        self._slots[life], self._pages[life] = slot, set()

    def _set(self, slot: int, life: WorkerLife | None) -> None:
        self._lives = (*self._lives[:slot], life, *self._lives[slot + 1 :])

    def _remove(self, life: WorkerLife, pages: Iterable[PageHash]) -> None:
        held, bit = self._pages[life], 1 << self._slots[life]
        for page in pages:
            if page not in held:
                continue
            held.discard(page)
            self._entries -= 1
            if left := self._holders[page] & ~bit:
                self._holders[page] = left
            else:
                del self._holders[page]

    def _store(self, life: WorkerLife, pages: Iterable[PageHash]) -> None:
        held, bit = self._pages[life], 1 << self._slots[life]
        for page in pages:
            if page in held:
                continue
            if self._entries >= self._max_entries:
                self.not_kept += 1
                continue
            held.add(page)
            self._entries += 1
            self._holders[page] = self._holders.get(page, 0) | bit
