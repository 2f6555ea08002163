"""The rooms in flight, counted and listed: a pure function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tandem.gateway.rooms import OpenRoom, Phase

OLDEST: Final = 8


@dataclass(frozen=True, slots=True)
class RoomRow:
    """One attempt that runs."""

    room: str
    """Too large for a number in a browser."""
    request_id: str
    attempt: int
    phase: Phase
    prefill: str
    decode: str
    age_ms: int


@dataclass(frozen=True, slots=True)
class RoomsSeen:
    """What this gateway has in flight."""

    waiting: int
    """Sequences without a room: being read, tokenized, waiting for workers or for the next attempt, or written out."""
    prefill: int
    transfer: int
    decode: int
    oldest: list[RoomRow]
    """At most OLDEST, the oldest first."""


def rooms_seen(rooms: Sequence[OpenRoom], sequences: int, now: float) -> RoomsSeen:
    """rooms: the oldest first. sequences: those that have a place in the gateway. now: monotonic seconds."""
    phases = [room.phase() for room in rooms]
    return RoomsSeen(
        waiting=max(0, sequences - len(rooms)),
        prefill=phases.count(Phase.PREFILL),
        transfer=phases.count(Phase.TRANSFER),
        decode=phases.count(Phase.DECODE),
        oldest=[_row(room, phase, now) for room, phase in zip(rooms[:OLDEST], phases, strict=False)],
    )


def _row(room: OpenRoom, phase: Phase, now: float) -> RoomRow:
    return RoomRow(
        room=str(room.room),
        request_id=room.request_id,
        attempt=room.attempt,
        phase=phase,
        prefill=room.prefill.worker_id,
        decode=room.decode.worker_id,
        age_ms=max(0, round((now - room.since) * 1000)),
    )
