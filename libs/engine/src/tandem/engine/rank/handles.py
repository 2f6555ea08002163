"""What an engine holds of a room: reads that never block, and wishes that are carried out on the rank's loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy.typing as npt

from tandem.core.errors import ErrorReason
from tandem.core.ids import RoomId
from tandem.core.room.events import Phase, Why

Post = Callable[..., object]
"""Runs a callable on the rank's loop: at once if the engine lives there, else loop.call_soon_threadsafe."""


class Rooms(Protocol):
    """What the handles ask of the agent, on its loop."""

    def push(
        self,
        room: RoomId,
        kv_pages: npt.ArrayLike,
        state_pages: Sequence[npt.ArrayLike | None],
        last: bool,
        metadata_row: int | None,
        kv_buffers: Sequence[int] | None,
    ) -> None:
        """A chunk of a sender's room is finished."""

    def began(self, room: RoomId, at_s: float) -> None:
        """The engine began to compute a prompt."""

    def reserve(
        self,
        room: RoomId,
        kv_pages: npt.ArrayLike,
        state_pages: Sequence[npt.ArrayLike | None],
        metadata_row: int,
        decode_prefix_len: int,
    ) -> None:
        """The pages of a receiver's room are reserved."""

    def abort_room(self, room: RoomId, why: Why) -> bool:
        """Ends a room early."""

    def forget(self, room: RoomId) -> None:
        """The engine is done with a room."""


class RoomHandle:
    """One room, as its engine sees it. `phase`, `why` and the counters are plain reads, from any thread."""

    def __init__(self, room: RoomId, rooms: Rooms, post: Post) -> None:
        self.room = room
        self.phase = Phase.BOOTSTRAPPING
        self.why: Why | None = None
        self.on_change: Callable[[], None] | None = None
        """Called on the rank's loop after each change of phase."""
        self.bytes_moved = 0
        self.elapsed_s: float | None = None
        """From the first chunk to the end, once it has ended."""
        self._rooms = rooms
        self._post = post

    def update(self, phase: Phase, why: Why | None) -> None:
        """Takes the machine's word; rank's loop only."""
        if phase is self.phase:
            return
        self.why = why
        self.phase = phase
        if self.on_change is not None:
            self.on_change()

    def abort(self, reason: ErrorReason, message: str, *, by_peer: bool = False) -> None:
        """Gives the room up; its phase turns FAILED once nothing of it moves any more."""
        self._post(self._rooms.abort_room, self.room, Why(reason, message, by_peer))

    def clear(self) -> None:
        """The engine is done with the room; one that has not ended is aborted."""
        self._post(self._rooms.forget, self.room)


class SenderHandle(RoomHandle):
    """Prefill's side of a room."""

    def __init__(self, room: RoomId, rooms: Rooms, post: Post) -> None:
        super().__init__(room, rooms, post)
        self.decode_prefix_len = 0
        """Prompt tokens that decode holds already; valid from WAITING on."""

    def push(
        self,
        kv_pages: npt.ArrayLike,
        state_pages: Sequence[npt.ArrayLike | None] = (),
        *,
        last: bool,
        metadata_row: int | None = None,
        kv_buffers: Sequence[int] | None = None,
    ) -> None:
        """One finished chunk, in token order. The last one carries the states and the metadata row.

        kv_buffers: those of the KV pool that it is of, which is how an engine pushes layer by layer; None = all. Each
        buffer gets its pages in token order, however the buffers take turns.
        """
        self._post(self._rooms.push, self.room, kv_pages, state_pages, last, metadata_row, kv_buffers)

    def began(self, at_s: float) -> None:
        """The engine began to compute the prompt, at this time of the monotonic clock; for the room's trace only."""
        self._post(self._rooms.began, self.room, at_s)


class ReceiverHandle(RoomHandle):
    """Decode's side of a room."""

    def __init__(self, room: RoomId, rooms: Rooms, post: Post) -> None:
        super().__init__(room, rooms, post)
        self._offered = False

    @property
    def quiet(self) -> bool:
        """No byte can land on the offered pages: not offered yet, or the room has ended and its grant is closed."""
        return not self._offered or self.phase in (Phase.SUCCESS, Phase.FAILED)

    def offer(
        self,
        kv_pages: npt.ArrayLike,
        state_pages: Sequence[npt.ArrayLike | None] = (),
        *,
        metadata_row: int,
        decode_prefix_len: int = 0,
    ) -> None:
        """The reserved pages, in token order, without those of the prefix that decode holds."""
        self._offered = True
        self._post(self._rooms.reserve, self.room, kv_pages, state_pages, metadata_row, decode_prefix_len)
