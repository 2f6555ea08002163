"""Names for the numbers that travel: one NewType each, so that they can't be mixed up."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Final, NewType

RoomId = NewType("RoomId", int)
"""One attempt of one sequence: random, 1..2^63-1, never reused."""

GrantId = NewType("GrantId", int)
"""One offer of one receiver: 1..2^63-1, never reused by it."""

ChunkIndex = NewType("ChunkIndex", int)
"""Number of a chunk in its room, from 0, without gaps."""

LinkEpoch = NewType("LinkEpoch", int)
"""One life of a KvLink: 1..2^63-1."""

Incarnation = NewType("Incarnation", int)
"""One life of a worker process: monotonic, issued by bootstrap, 1..2^63-1; 0 = not issued yet."""

WorkerId = NewType("WorkerId", str)
"""Stable name of a worker, 1..128 characters of [A-Za-z0-9._-]."""

RequestId = NewType("RequestId", str)
"""Groups the attempts and sequences of one client request, 1..128 characters."""

Nonce = NewType("Nonce", bytes)
"""A room's token, 16 random bytes known to its two legs only."""

NONCE_BYTES = 16
MAX_ID = 2**63 - 1


def room_from_random(bits: int) -> RoomId:
    """Turns 63 or more random bits into a room id of 1..2^63-1."""
    return RoomId(bits % MAX_ID + 1)


class Role(Enum):
    """What a worker does with a request."""

    __hash__ = object.__hash__
    """Members are single objects; Enum's own hashes their names, in Python, for each look-up."""

    PREFILL = "prefill"
    DECODE = "decode"
    UNIFIED = "unified"
    """Both, without a peer."""


PAIR: Final = (Role.PREFILL, Role.DECODE)
"""Roles that share a room, and move its KV."""
ALONE: Final = (Role.UNIFIED,)
TEAMS: Final = (PAIR, ALONE)
"""Whose workers can serve a room: one of each of these roles."""


def can_serve(workers: Callable[[Role], Collection[object]]) -> bool:
    """Whether there is a whole team. workers: those of a role."""
    return any(all(map(workers, team)) for team in TEAMS)


@dataclass(frozen=True, slots=True, order=True)
class WorkerLife:
    """One life of one worker: what messages call `WorkerRef`."""

    worker_id: WorkerId
    incarnation: Incarnation

    def __str__(self) -> str:
        return f"{self.worker_id}@{self.incarnation}"


@dataclass(frozen=True, slots=True, order=True)
class RankId:
    """Place of an engine rank in its worker."""

    dp: int = 0
    pp: int = 0
    tp: int = 0

    def __str__(self) -> str:
        return f"dp{self.dp}.pp{self.pp}.tp{self.tp}"
