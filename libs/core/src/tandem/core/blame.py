"""Which leg of a room failed of itself, as far as what a leg says of a failure can tell."""

from __future__ import annotations

from typing import Final

from tandem.core.errors import ErrorReason
from tandem.core.ids import Role

OF_ITSELF: Final = frozenset(
    {ErrorReason.ENGINE_FAILED, ErrorReason.INTERNAL, ErrorReason.POOL_EXHAUSTED, ErrorReason.DRAINING}
)
"""What a leg says of nobody but itself. Every other reason may lie in its peer, or between the two: a decode worker
whose link breaks cannot know which end it was."""

PEER_OF: Final = {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL}


def blamed(reporter: Role, reason: ErrorReason, *, by_peer: bool) -> Role | None:
    """The leg that failed; None if what was said does not tell.

    by_peer: whether the reporter only passes on what its peer said when it gave the room up.
    """
    if reason not in OF_ITSELF:
        return None
    return PEER_OF[reporter] if by_peer else reporter
