"""A rank's open rooms as an operator sees them, and the messages that they travel in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from typing import Final

from tandem.core.ids import RankId, RoomId
from tandem.engine.port import OpenRooms, RankRoom
from tandem.engine.rank.rooms import RoomShell
from tandem.rpc import convert
from tandem.v1 import session_pb2

MAX_PER_RANK: Final = 1_000
MAX_ROOMS: Final = 4_096
"""Most rooms in one message, which then stays under 1 MiB."""


def oldest(shells: Collection[RoomShell], rank: RankId, now: float, limit: int) -> OpenRooms:
    """The rooms that have been open for longest. `shells` are in the order in which they were opened."""
    shown = (shell for _, shell in zip(range(min(limit, MAX_ROOMS)), shells, strict=False))
    return OpenRooms(tuple(_seen(shell, rank, now) for shell in shown), len(shells))


def _seen(shell: RoomShell, rank: RankId, now: float) -> RankRoom:
    return RankRoom(
        room=shell.room,
        rank=rank,
        state=shell.state,
        peer=shell.ticket.peer,
        granted_pages=shell.granted_pages,
        bytes_moved=shell.bytes_moved,
        age_ms=int((now - shell.opened_s) * 1000),
        left_ms=max(0, int((shell.ticket.deadline - now) * 1000)),
    )


def limit_of(asked: int, ranks: int) -> int:
    """Rooms to ask each rank for, so that all of them fit one message. asked: 0 = the most."""
    return max(1, min(asked or MAX_PER_RANK, MAX_PER_RANK, MAX_ROOMS // max(1, ranks)))


def merge(ranks: Sequence[OpenRooms]) -> OpenRooms:
    """All ranks' rooms, the oldest first."""
    rooms = sorted(chain.from_iterable(rank.rooms for rank in ranks), key=lambda room: -room.age_ms)
    return OpenRooms(tuple(rooms), sum(rank.total for rank in ranks))


def to_proto(room: RankRoom) -> session_pb2.RankRoom:
    """RankRoom to its message."""
    return session_pb2.RankRoom(
        room=room.room,
        rank=convert.rank_to_proto(room.rank),
        state=room.state,
        peer=convert.life_to_proto(room.peer),
        granted_pages=room.granted_pages,
        bytes_moved=room.bytes_moved,
        age_ms=room.age_ms,
        left_ms=room.left_ms,
    )


def from_proto(message: session_pb2.RankRoom) -> RankRoom:
    """Message to RankRoom."""
    return RankRoom(
        room=RoomId(message.room),
        rank=convert.rank_from_proto(message.rank),
        state=message.state,
        peer=convert.life_from_proto(message.peer),
        granted_pages=message.granted_pages,
        bytes_moved=message.bytes_moved,
        age_ms=message.age_ms,
        left_ms=message.left_ms,
    )
