"""Affinity: requests with the same key meet on the same worker, as far as its load allows.

Rendezvous hashing: a key ranks all workers, each by a hash of both. Nothing is stored, every gateway ranks alike, and
a worker that comes or goes changes nobody else's place. The hash is weighed by places, so that a worker with twice as
many gets twice as many keys.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final, NewType

import numpy as np
from numpy.typing import NDArray

from tandem.core.ids import WorkerId

AffinityKey = NewType("AffinityKey", bytes)
"""Digest of what requests have in common, 16 bytes; empty = nothing."""

NO_KEY: Final = AffinityKey(b"")
KEY_BYTES: Final = 16
_SCORE_BITS: Final = 52
"""So that what is drawn fits a float exactly, with a half added."""
_SPARE_BITS: Final = np.array(64 - _SCORE_BITS, np.uint64)
_SHIFTS: Final = tuple(np.array(shift, np.uint64) for shift in (30, 27, 31))
_FACTORS: Final = tuple(np.array(factor, np.uint64) for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Arrays, as numpy turns its scalars into these for each operation."""


def key_of_text(text: str) -> AffinityKey:
    """The key of a name that clients give; NO_KEY if it is empty."""
    return _key(text.encode()) if text else NO_KEY


def key_of_prefix(ids: Sequence[int], tokens: int) -> AffinityKey:
    """The key of a prompt's first `tokens` token ids; of all where there are fewer. NO_KEY if there is none."""
    first = ids[:tokens]
    return _key(_packing(len(first)).pack(*first)) if first else NO_KEY


@lru_cache(64)
def _packing(tokens: int) -> struct.Struct:
    return struct.Struct(f"<{tokens}I")


@lru_cache(4096)
def worker_hash(worker: WorkerId) -> int:
    """What `Homes` needs of a worker, 64 bits. Lives of one worker are alike, so that its keys come back with it."""
    return int.from_bytes(blake2b(worker.encode(), digest_size=8).digest(), "big")


class Homes:
    """Finds the home of a key among workers that stay the same.

    Of workers of one weight the nearest is the one that drew most, so only the winners of each weight are ranked.
    """

    def __init__(self, workers: NDArray[np.uint64], weights: NDArray[np.int64]) -> None:
        """workers: their hashes, at least one. weights: more than 0; a worker is home to keys in proportion."""
        self._mixed = workers ^ (workers >> _SHIFTS[0])
        self._weights = weights
        self._order = np.argsort(weights, kind="stable")
        by_weight = weights[self._order]
        self._starts = np.flatnonzero(np.diff(by_weight, prepend=0))
        """Where each weight begins in that order."""
        self._ends = [*self._starts[1:].tolist(), len(weights)]
        self._kinds = by_weight[self._starts]

    def draw(self, key: AffinityKey) -> NDArray[np.uint64]:
        """What a key draws for each worker, 64 bits. key: not empty."""
        # Both are digests already; what remains is to mix them, which the finalizer of splitmix64 does to key ^ worker.
        # Its first shift does not mix the two yet, so it is done to each by itself.
        number = int.from_bytes(key[:8], "big")
        drawn = self._mixed ^ np.uint64(number ^ number >> int(_SHIFTS[0]))
        drawn *= _FACTORS[0]
        drawn ^= drawn >> _SHIFTS[1]
        drawn *= _FACTORS[1]
        drawn ^= drawn >> _SHIFTS[2]
        return drawn

    def nearest(self, drawn: NDArray[np.uint64]) -> int:
        """Place of the home."""
        if len(self._ends) == 1:
            return int(drawn.argmax())
        drawn = drawn[self._order]
        kind = int(ranks(np.maximum.reduceat(drawn, self._starts), self._kinds).argmax())
        start, end = int(self._starts[kind]), self._ends[kind]
        return int(self._order[start + int(drawn[start:end].argmax())])

    def nearest_of(self, drawn: NDArray[np.uint64], some: NDArray[np.intp]) -> int:
        """Place of the one that would be, were there only some of the workers. some: their places, rising."""
        drawn = drawn[some]
        near = drawn if len(self._ends) == 1 else ranks(drawn, self._weights[some])
        return int(some[int(near.argmax())])


def ranks(drawn: NDArray[np.uint64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """How near workers are to a key, by what it drew for them: the highest is its home. Positive, and finite."""
    found: NDArray[np.float64] = weights / -np.log(((drawn >> _SPARE_BITS) + 0.5) / 2**_SCORE_BITS)
    return found


def _key(content: bytes) -> AffinityKey:
    return AffinityKey(blake2b(content, digest_size=KEY_BYTES).digest())
