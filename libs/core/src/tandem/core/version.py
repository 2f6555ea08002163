"""The protocol version that this code speaks, and what it accepts from others."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

from tandem.core.errors import ErrorReason, TandemError


class Feature(IntFlag):
    """Optional features; two processes use the intersection of their bits."""

    NONE = 0
    CHUNK_CHECKSUM = 1
    """ChunkDone may carry a checksum."""
    DECODE_PREFIX = 2
    """OfferPages may carry decode_prefix_len > 0."""
    CONTINUED = 4
    """OfferPages and Submit may go on in further messages."""
    PUT_ASIDE = 8
    """A Session takes PutAside."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """A protocol version as Register and Hello carry it."""

    major: int
    minor: int
    features: Feature = Feature.NONE

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


_ALL = Feature.CHUNK_CHECKSUM | Feature.DECODE_PREFIX | Feature.CONTINUED | Feature.PUT_ASIDE
CURRENT = Protocol(major=1, minor=1, features=_ALL)


def agree(ours: Protocol, theirs: Protocol, who: str) -> Feature:
    """Returns the features both sides may use.

    Raises TandemError(VERSION_MISMATCH) with both versions if the majors differ.
    """
    if ours.major != theirs.major:
        raise TandemError(
            ErrorReason.VERSION_MISMATCH,
            f"{who} speaks protocol {theirs}, this process speaks {ours}; the majors must be equal",
        )
    return ours.features & theirs.features
