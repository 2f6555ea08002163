"""What a prefix cache holds, on its way: KvChange as a message."""

from __future__ import annotations

from typing import Final

from tandem.core.kv_index import KvChange, PageHash
from tandem.v1 import session_pb2

PAGES_PER_MESSAGE: Final = 65_536
"""Half of what a message may hold."""
MAX_HELD_PAGES: Final = 4_194_304
"""Pages of one prefix cache that are noted."""


def to_proto(change: KvChange) -> session_pb2.HeldPagesChange:
    """KvChange to its message."""
    return session_pb2.HeldPagesChange(
        sequence=change.sequence, cleared=change.cleared, removed=change.removed, stored=change.stored
    )


def from_proto(message: session_pb2.HeldPagesChange) -> KvChange:
    """Message to KvChange."""
    return KvChange(
        message.sequence,
        removed=tuple(map(PageHash, message.removed)),
        stored=tuple(map(PageHash, message.stored)),
        cleared=message.cleared,
    )
