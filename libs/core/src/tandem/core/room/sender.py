"""Prefill's side of a room, on one rank.

The states and their legal moves are `TRANSITIONS`; the methods below only say what each move does.

    AWAITING_GRANT --offer--> GRANTED --chunk--> PUSHING --last chunk moved--> COMPLETED --landed--> SUCCEEDED
          any of them --broken / peer aborted / deadline--> QUIESCING --quiet--> FAILED

Chunks that the engine finishes before the grant is there wait in the machine. A room has failed only when nothing
of it is in flight any more: then its pages can be reused (I1, I2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final

from tandem.core.errors import ErrorReason
from tandem.core.room.events import (
    Broken,
    ChunkMoved,
    ChunkReady,
    Effect,
    Ended,
    Fence,
    LandedByPeer,
    Offer,
    PeerAborted,
    PeerQuiet,
    Phase,
    Quiet,
    SendAbort,
    SendAbortAck,
    SendChunkDone,
    SendComplete,
    StartTransfer,
    Tick,
    Why,
)
from tandem.core.room.machine import RoomMachine


class SenderState(Enum):
    """Where prefill's side of a room stands."""

    AWAITING_GRANT = "awaiting_grant"
    GRANTED = "granted"
    PUSHING = "pushing"
    COMPLETED = "completed"
    QUIESCING = "quiescing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


S = SenderState

TRANSITIONS: Final[dict[tuple[SenderState, type], frozenset[SenderState]]] = {
    (S.AWAITING_GRANT, Offer): frozenset({S.GRANTED, S.PUSHING}),
    (S.AWAITING_GRANT, ChunkReady): frozenset({S.AWAITING_GRANT, S.QUIESCING}),
    (S.AWAITING_GRANT, PeerAborted): frozenset({S.QUIESCING}),
    (S.AWAITING_GRANT, Broken): frozenset({S.QUIESCING}),
    (S.AWAITING_GRANT, Tick): frozenset({S.AWAITING_GRANT, S.QUIESCING}),
    (S.GRANTED, ChunkReady): frozenset({S.PUSHING, S.QUIESCING}),
    (S.GRANTED, PeerAborted): frozenset({S.QUIESCING}),
    (S.GRANTED, Broken): frozenset({S.QUIESCING}),
    (S.GRANTED, Tick): frozenset({S.GRANTED, S.QUIESCING}),
    (S.PUSHING, ChunkReady): frozenset({S.PUSHING, S.QUIESCING}),
    (S.PUSHING, ChunkMoved): frozenset({S.PUSHING, S.COMPLETED}),
    (S.PUSHING, PeerAborted): frozenset({S.QUIESCING}),
    (S.PUSHING, Broken): frozenset({S.QUIESCING}),
    (S.PUSHING, Tick): frozenset({S.PUSHING, S.QUIESCING}),
    (S.COMPLETED, LandedByPeer): frozenset({S.SUCCEEDED, S.QUIESCING}),
    (S.COMPLETED, PeerAborted): frozenset({S.QUIESCING}),
    (S.COMPLETED, Broken): frozenset({S.QUIESCING}),
    (S.COMPLETED, Tick): frozenset({S.COMPLETED, S.QUIESCING}),
    (S.QUIESCING, Quiet): frozenset({S.FAILED}),
    (S.QUIESCING, PeerAborted): frozenset({S.QUIESCING}),
    (S.QUIESCING, PeerQuiet): frozenset({S.QUIESCING}),
    (S.QUIESCING, Broken): frozenset({S.QUIESCING}),
    (S.QUIESCING, ChunkMoved): frozenset({S.QUIESCING}),
    (S.QUIESCING, Tick): frozenset({S.QUIESCING}),
}
"""Legal moves; any other pair of state and input is refused."""

TERMINAL: Final = frozenset({S.SUCCEEDED, S.FAILED})

_PHASES: Final[dict[SenderState, Phase]] = {
    S.AWAITING_GRANT: Phase.BOOTSTRAPPING,
    S.GRANTED: Phase.WAITING,
    S.PUSHING: Phase.TRANSFERRING,
    S.COMPLETED: Phase.TRANSFERRING,
    S.QUIESCING: Phase.TRANSFERRING,
    S.SUCCEEDED: Phase.SUCCESS,
    S.FAILED: Phase.FAILED,
}


@dataclass(slots=True)
class _Progress:
    """What was pushed so far."""

    ready: int = 0
    moved: int = 0
    bytes: int = 0
    last_ready: bool = False


_Move = tuple[SenderState, list[Effect]]


class Sender(RoomMachine[SenderState]):
    """The machine of prefill's side."""

    __slots__ = ("_progress", "_waiting")

    transitions = TRANSITIONS
    phases = _PHASES
    decided = TERMINAL | {S.QUIESCING}

    def __init__(self, deadline: float) -> None:
        """deadline: monotonic seconds by which the room must have ended well."""
        super().__init__(S.AWAITING_GRANT, deadline)
        self._waiting: list[ChunkReady] = []
        self._progress = _Progress()

    @property
    def bytes_moved(self) -> int:
        """Bytes of finished chunks."""
        return self._progress.bytes

    # Each handler returns the next state and the effects.

    def _on_offer(self, event: Offer, now: float) -> _Move:
        self._grant = event.grant_id
        waiting, self._waiting = self._waiting, []
        effects: list[Effect] = [StartTransfer(ready.chunk) for ready in waiting]
        return (S.PUSHING if effects else S.GRANTED), effects

    def _on_chunk_ready(self, event: ChunkReady, now: float) -> _Move:
        if event.chunk != self._progress.ready or self._progress.last_ready:
            why = Why(ErrorReason.PROTOCOL_VIOLATION, f"chunk {event.chunk} came after {self._progress.ready} chunks")
            return self._give_up(why, tell_peer=True)
        self._progress.ready += 1
        self._progress.last_ready = event.last
        if self._grant is None:
            self._waiting.append(event)
            return self._state, []
        return S.PUSHING, [StartTransfer(event.chunk)]

    def _on_chunk_moved(self, event: ChunkMoved, now: float) -> _Move:
        if self._state is S.QUIESCING:
            return self._state, []
        progress = self._progress
        progress.moved += 1
        progress.bytes += event.bytes
        effects: list[Effect] = [SendChunkDone(event.chunk, event.bytes, event.checksum)]
        if progress.last_ready and progress.moved == progress.ready:
            return S.COMPLETED, [*effects, SendComplete(progress.ready, progress.bytes)]
        return S.PUSHING, effects

    def _on_landed(self, event: LandedByPeer, now: float) -> _Move:
        if event.grant_id != self._grant:
            return self._give_up(Why(ErrorReason.PROTOCOL_VIOLATION, "Landed for another grant"), tell_peer=True)
        return S.SUCCEEDED, [Ended(None)]

    def _on_peer_aborted(self, event: PeerAborted, now: float) -> _Move:
        if self._state is S.QUIESCING:
            return self._state, []
        return self._give_up(event.why, tell_peer=False)

    def _on_peer_quiet(self, event: PeerQuiet, now: float) -> _Move:
        return self._state, []

    def _on_broken(self, event: Broken, now: float) -> _Move:
        if self._state is S.QUIESCING:
            return self._state, []
        return self._give_up(event.why, tell_peer=True)

    def _on_quiet(self, event: Quiet, now: float) -> _Move:
        return S.FAILED, [SendAbortAck(), Ended(self._why)]

    def _on_tick(self, event: Tick, now: float) -> _Move:
        if self._state is S.QUIESCING or now < self._deadline:
            return self._state, []
        return self._give_up(
            Why(ErrorReason.DEADLINE_EXCEEDED, f"the room was still {self._state.value} at its deadline"),
            tell_peer=True,
        )

    def _give_up(self, why: Why, *, tell_peer: bool) -> _Move:
        self._why = why
        self._waiting.clear()
        tell: list[Effect] = [SendAbort(why)] if tell_peer else []
        return S.QUIESCING, [*tell, Fence()]

    handlers: ClassVar[Mapping[type, Callable[..., _Move]]] = {
        Offer: _on_offer,
        ChunkReady: _on_chunk_ready,
        ChunkMoved: _on_chunk_moved,
        LandedByPeer: _on_landed,
        PeerAborted: _on_peer_aborted,
        PeerQuiet: _on_peer_quiet,
        Broken: _on_broken,
        Quiet: _on_quiet,
        Tick: _on_tick,
    }
