"""The rooms in flight, counted and listed: a pure function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tandem.core.ids import Role
from tandem.gateway.routing.attempt import RoomPhase
from tandem.gateway.routing.rooms import Entry

OLDEST: Final = 8
SHOWN_PHASES: Final = {
    RoomPhase.SUBMITTED: "prefill",
    RoomPhase.FIRST_TOKEN: "transfer",
    RoomPhase.DECODING: "decode",
}
"""What a page calls them. The KV may move unannounced before the first token is said."""


@dataclass(frozen=True, slots=True)
class RoomRow:
    """One attempt that runs."""

    room: str
    """Too large for a number in a browser."""
    request_id: str
    attempt: int
    phase: str
    prefill: str
    """A unified worker is both."""
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


def rooms_seen(rooms: Sequence[Entry], sequences: int, now: float) -> RoomsSeen:
    """rooms: the oldest first. sequences: those that have a place in the gateway. now: monotonic seconds."""
    phases = [SHOWN_PHASES[room.running.phase] for room in rooms]
    return RoomsSeen(
        waiting=max(0, sequences - len(rooms)),
        prefill=phases.count("prefill"),
        transfer=phases.count("transfer"),
        decode=phases.count("decode"),
        oldest=[_row(room, phase, now) for room, phase in zip(rooms[:OLDEST], phases, strict=False)],
    )


def rooms_together(parts: Sequence[RoomsSeen]) -> RoomsSeen:
    """The rooms of several processes."""
    rows = [row for part in parts for row in part.oldest]
    return RoomsSeen(
        waiting=sum(part.waiting for part in parts),
        prefill=sum(part.prefill for part in parts),
        transfer=sum(part.transfer for part in parts),
        decode=sum(part.decode for part in parts),
        oldest=sorted(rows, key=lambda row: row.age_ms, reverse=True)[:OLDEST],
    )


def _row(room: Entry, phase: str, now: float) -> RoomRow:
    facts = room.facts
    return RoomRow(
        room=str(facts.room),
        request_id=facts.request_id,
        attempt=facts.attempt,
        phase=phase,
        prefill=facts.worker_of(Role.PREFILL),
        decode=facts.worker_of(Role.DECODE),
        age_ms=max(0, round((now - room.started) * 1000)),
    )
