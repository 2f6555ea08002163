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
_SPARE_BITS: Final = np.uint64(64 - _SCORE_BITS)
_MIX: Final = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT: Final = np.uint64(31)


def key_of_text(text: str) -> AffinityKey:
    """The key of a name that clients give; NO_KEY if it is empty."""
    return _key(text.encode()) if text else NO_KEY


def key_of_prefix(ids: Sequence[int], tokens: int) -> AffinityKey:
    """The key of a prompt's first `tokens` token ids; of all where there are fewer. NO_KEY if there is none."""
    first = ids[:tokens]
    return _key(struct.pack(f"<{len(first)}I", *first)) if first else NO_KEY


@lru_cache(4096)
def worker_hash(worker: WorkerId) -> int:
    """What `ranks` needs of a worker, 64 bits. Lives of one worker are alike, so that its keys come back with it."""
    return int.from_bytes(blake2b(worker.encode(), digest_size=8).digest(), "big")


def ranks(key: AffinityKey, workers: NDArray[np.uint64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """How near workers are to a key: the highest is its home. Positive, and finite.

    key: not empty. workers: their hashes. weights: more than 0; a worker is home to keys in proportion.
    """
    # Both are digests already; what remains is to mix them, which the finalizer of splitmix64 does.
    drawn = workers ^ np.uint64(int.from_bytes(key[:8], "big"))
    for shift, factor in _MIX:
        drawn = (drawn ^ (drawn >> shift)) * factor
    drawn = (drawn ^ (drawn >> _LAST_SHIFT)) >> _SPARE_BITS
    found: NDArray[np.float64] = weights / -np.log((drawn + 0.5) / 2**_SCORE_BITS)
    return found


def _key(content: bytes) -> AffinityKey:
    return AffinityKey(blake2b(content, digest_size=KEY_BYTES).digest())
