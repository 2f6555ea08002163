"""The rooms that run now, for whoever wants to see them. Nothing is decided by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from tandem.core.ids import RequestId, RoomId, WorkerLife


class Phase(Enum):
    """How far an attempt has come, as far as its gateway can tell."""

    PREFILL = "prefill"
    """Both legs were asked and decode has brought nothing: prefill computes, or the KV moves unannounced."""
    TRANSFER = "transfer"
    """Prefill has said the first token, and decode nothing yet: the KV is on its way."""
    DECODE = "decode"
    """The KV has arrived: decode has brought tokens, or prefill has handed over."""


@dataclass(frozen=True, slots=True)
class OpenRoom:
    """One attempt that runs."""

    room: RoomId
    request_id: RequestId
    attempt: int
    """Number of the attempt of its sequence, from 1."""
    prefill: WorkerLife
    decode: WorkerLife
    since: float
    """Monotonic seconds at which it was submitted."""
    phase: Callable[[], Phase]
    """Its phase now."""


class OpenRooms:
    """Holds each attempt as long as it runs: at most as many as the gateway has places for sequences."""

    def __init__(self) -> None:
        self._rooms: dict[RoomId, OpenRoom] = {}

    @contextmanager
    def holding(self, room: OpenRoom) -> Iterator[None]:
        """The room is open inside of the context."""
        self._rooms[room.room] = room
        try:
            yield
        finally:
            del self._rooms[room.room]

    def now(self) -> tuple[OpenRoom, ...]:
        """Every open room, the oldest first."""
        return tuple(self._rooms.values())
