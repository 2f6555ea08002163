"""Affinity: requests with the same key meet on the same worker, as far as its load allows.

Rendezvous hashing: a key ranks all workers, each by a hash of both. Nothing is stored, every gateway ranks alike, and
a worker that comes or goes changes nobody else's place. The hash is weighed by places, so that a worker with twice as
many gets twice as many keys.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, NewType

from tandem.core.ids import WorkerId

AffinityKey = NewType("AffinityKey", bytes)
"""Digest of what requests have in common, 16 bytes; empty = nothing."""

NO_KEY: Final = AffinityKey(b"")
KEY_BYTES: Final = 16
_SCORE_BITS: Final = 52
"""So that what is drawn fits a float exactly, with a half added."""


def key_of_text(text: str) -> AffinityKey:
    """The key of a name that clients give; NO_KEY if it is empty."""
    return _key(text.encode()) if text else NO_KEY


def key_of_prefix(ids: Sequence[int], tokens: int) -> AffinityKey:
    """The key of a prompt's first `tokens` token ids; of all where there are fewer. NO_KEY if there is none."""
    first = ids[:tokens]
    return _key(struct.pack(f"<{len(first)}I", *first)) if first else NO_KEY


def rank(key: AffinityKey, worker: WorkerId, weight: float) -> float:
    """How near a worker is to a key: the highest is its home. Positive, and finite.

    weight: more than 0; a worker is home to keys in proportion. Lives of one worker rank alike, so that its keys come
    back with it.
    """
    drawn = int.from_bytes(blake2b(worker.encode(), key=key, digest_size=8).digest(), "big") >> (64 - _SCORE_BITS)
    return weight / -math.log((drawn + 0.5) / 2**_SCORE_BITS)


def _key(content: bytes) -> AffinityKey:
    return AffinityKey(blake2b(content, digest_size=KEY_BYTES).digest())
