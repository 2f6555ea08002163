"""Decode's side of a room, on one rank.

The states and their legal moves are `TRANSITIONS`; the methods below only say what each move does.

    CONNECTING --link up--> READY --pages reserved--> OFFERED --evidence--> RECEIVING --verified--> CLOSING
    CLOSING --grant closed--> SUCCEEDED, or FAILED if the KV did not reach the engine's own memory
    CONNECTING .. RECEIVING --broken / peer aborted / deadline--> FENCING --grant closed--> FAILED

Prefill's words (ChunkDone, Complete) and the receiver's own evidence come in any order. Verified = every chunk that
Complete counts was claimed and seen, with equal bytes and checksums, and every granted byte is among them. A room has
ended only when its grant is closed: then no byte can land on its pages any more (I2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Final, TypeVar

from tandem.core.errors import ErrorReason
from tandem.core.ids import ChunkIndex
from tandem.core.room.events import (
    Broken,
    ChunkClaimed,
    ChunkSeen,
    CloseGrant,
    CompleteClaimed,
    Effect,
    Ended,
    Fence,
    LinkUp,
    PagesReserved,
    PeerAborted,
    PeerQuiet,
    Phase,
    Quiet,
    Refused,
    SendAbort,
    SendAbortAck,
    SendLanded,
    SendOffer,
    Tick,
    Why,
)
from tandem.core.room.machine import RoomMachine

MAX_CHUNKS: Final = 1 << 16
"""Most chunks in one room: bounds what a peer can make us remember."""


_Chunk = TypeVar("_Chunk", ChunkSeen, ChunkClaimed)


class ReceiverState(Enum):
    """Where decode's side of a room stands."""

    CONNECTING = "connecting"
    READY = "ready"
    OFFERED = "offered"
    RECEIVING = "receiving"
    CLOSING = "closing"
    FENCING = "fencing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


S = ReceiverState

_ACTIVE = frozenset({S.RECEIVING, S.CLOSING, S.FENCING})

TRANSITIONS: Final[dict[tuple[ReceiverState, type], frozenset[ReceiverState]]] = {
    (S.CONNECTING, LinkUp): frozenset({S.READY}),
    (S.CONNECTING, PeerAborted): frozenset({S.FENCING}),
    (S.CONNECTING, Broken): frozenset({S.FENCING}),
    (S.CONNECTING, Tick): frozenset({S.CONNECTING, S.FENCING}),
    (S.READY, PagesReserved): frozenset({S.OFFERED}),
    (S.READY, PeerAborted): frozenset({S.FENCING}),
    (S.READY, Broken): frozenset({S.FENCING}),
    (S.READY, Tick): frozenset({S.READY, S.FENCING}),
    (S.OFFERED, ChunkSeen): frozenset({S.RECEIVING}),
    (S.OFFERED, ChunkClaimed): frozenset({S.RECEIVING}),
    (S.OFFERED, CompleteClaimed): frozenset({S.RECEIVING, S.FENCING}),
    (S.OFFERED, PeerAborted): frozenset({S.FENCING}),
    (S.OFFERED, Broken): frozenset({S.FENCING}),
    (S.OFFERED, Tick): frozenset({S.OFFERED, S.FENCING}),
    (S.RECEIVING, ChunkSeen): _ACTIVE,
    (S.RECEIVING, ChunkClaimed): _ACTIVE,
    (S.RECEIVING, CompleteClaimed): _ACTIVE,
    (S.RECEIVING, PeerAborted): frozenset({S.FENCING}),
    (S.RECEIVING, Broken): frozenset({S.FENCING}),
    (S.RECEIVING, Tick): frozenset({S.RECEIVING, S.FENCING}),
    # Verified: what fails now can't take the KV back, so it only waits for its grant to close, and where the engine's
    # own memory is a device's, for the copy there.
    (S.CLOSING, Quiet): frozenset({S.SUCCEEDED, S.FAILED}),
    (S.CLOSING, PeerAborted): frozenset({S.CLOSING}),
    (S.CLOSING, PeerQuiet): frozenset({S.CLOSING}),
    (S.CLOSING, Broken): frozenset({S.CLOSING}),
    (S.CLOSING, Tick): frozenset({S.CLOSING}),
    (S.FENCING, Quiet): frozenset({S.FAILED}),
    (S.FENCING, PeerQuiet): frozenset({S.FENCING}),
    (S.FENCING, PeerAborted): frozenset({S.FENCING}),
    (S.FENCING, Broken): frozenset({S.FENCING}),
    (S.FENCING, Tick): frozenset({S.FENCING}),
    # Sent before prefill heard of the abort; there is nothing left to do with it.
    (S.FENCING, ChunkSeen): frozenset({S.FENCING}),
    (S.FENCING, ChunkClaimed): frozenset({S.FENCING}),
    (S.FENCING, CompleteClaimed): frozenset({S.FENCING}),
}
"""Legal moves; any other pair of state and input is refused."""

TERMINAL: Final = frozenset({S.SUCCEEDED, S.FAILED})

_ENDING: Final = frozenset({S.CLOSING, S.FENCING})
"""Decided: only the grant has to close."""

_PHASES: Final[dict[ReceiverState, Phase]] = {
    S.CONNECTING: Phase.BOOTSTRAPPING,
    S.READY: Phase.WAITING,
    S.OFFERED: Phase.WAITING,
    S.RECEIVING: Phase.TRANSFERRING,
    S.CLOSING: Phase.TRANSFERRING,
    S.FENCING: Phase.TRANSFERRING,
    S.SUCCEEDED: Phase.SUCCESS,
    S.FAILED: Phase.FAILED,
}


@dataclass(slots=True)
class _Evidence:
    """What prefill claimed and what was seen, per chunk, until both are there and equal."""

    seen: dict[ChunkIndex, ChunkSeen] = field(default_factory=dict)
    claimed: dict[ChunkIndex, ChunkClaimed] = field(default_factory=dict)
    verified: set[ChunkIndex] = field(default_factory=set)
    bytes: int = 0
    complete: CompleteClaimed | None = None


_Move = tuple[ReceiverState, list[Effect]]


class Receiver(RoomMachine[ReceiverState]):
    """The machine of decode's side."""

    __slots__ = ("_evidence", "_granted_bytes")

    transitions = TRANSITIONS
    phases = _PHASES
    decided = TERMINAL | _ENDING

    def __init__(self, deadline: float) -> None:
        """deadline: monotonic seconds by which the room must have ended well."""
        super().__init__(S.CONNECTING, deadline)
        self._granted_bytes = 0
        self._evidence = _Evidence()

    @property
    def bytes_verified(self) -> int:
        """Bytes of verified chunks."""
        return self._evidence.bytes

    @property
    def chunks_verified(self) -> int:
        """Verified chunks."""
        return len(self._evidence.verified)

    # Each handler returns the next state and the effects.

    def _on_link_up(self, event: LinkUp, now: float) -> _Move:
        return S.READY, []

    def _on_pages_reserved(self, event: PagesReserved, now: float) -> _Move:
        self._grant = event.grant_id
        self._granted_bytes = event.bytes
        return S.OFFERED, [SendOffer(event.grant_id)]

    def _on_seen(self, event: ChunkSeen, now: float) -> _Move:
        if self._state is S.FENCING:
            return self._state, []
        return self._take(event, self._evidence.seen)

    def _on_claimed(self, event: ChunkClaimed, now: float) -> _Move:
        if self._state is S.FENCING:
            return self._state, []
        return self._take(event, self._evidence.claimed)

    def _take(self, event: _Chunk, table: dict[ChunkIndex, _Chunk]) -> _Move:
        if event.grant_id != self._grant:
            return S.RECEIVING, [Refused(f"{type(event).__name__} of another grant")]
        if event.chunk in table or event.chunk in self._evidence.verified or event.chunk >= MAX_CHUNKS:
            return S.RECEIVING, [Refused(f"{type(event).__name__} of chunk {event.chunk} again")]
        table[event.chunk] = event
        return self._compare(event.chunk)

    def _compare(self, chunk: ChunkIndex) -> _Move:
        evidence = self._evidence
        if chunk not in evidence.seen or chunk not in evidence.claimed:
            return S.RECEIVING, []
        seen, claimed = evidence.seen.pop(chunk), evidence.claimed.pop(chunk)
        if seen.bytes != claimed.bytes:
            return self._give_up(
                Why(
                    ErrorReason.TRANSFER_FAILED,
                    f"chunk {chunk} should have {claimed.bytes} bytes, {seen.bytes} arrived",
                )
            )
        if claimed.checksum is not None and seen.checksum != claimed.checksum:
            return self._give_up(
                Why(ErrorReason.CHECKSUM_MISMATCH, f"chunk {chunk} ({seen.bytes} bytes) did not arrive intact")
            )
        evidence.verified.add(chunk)
        evidence.bytes += seen.bytes
        return self._conclude()

    def _on_complete(self, event: CompleteClaimed, now: float) -> _Move:
        if self._state is S.FENCING:
            return self._state, []
        if event.grant_id != self._grant or self._evidence.complete is not None:
            return S.RECEIVING, [Refused("Complete of another grant, or again")]
        if not 1 <= event.chunks <= MAX_CHUNKS:
            return self._give_up(Why(ErrorReason.PROTOCOL_VIOLATION, f"Complete counts {event.chunks} chunks"))
        self._evidence.complete = event
        return self._conclude()

    def _conclude(self) -> _Move:
        evidence, complete = self._evidence, self._evidence.complete
        if complete is None or len(evidence.verified) < complete.chunks:
            return S.RECEIVING, []
        counts = (len(evidence.verified), evidence.bytes, evidence.bytes)
        if counts != (complete.chunks, complete.bytes, self._granted_bytes):
            return self._give_up(
                Why(
                    ErrorReason.TRANSFER_FAILED,
                    f"{self._granted_bytes} bytes were granted, Complete counts {complete.chunks} chunks of "
                    f"{complete.bytes} bytes, {len(evidence.verified)} of {evidence.bytes} bytes arrived",
                )
            )
        return S.CLOSING, [CloseGrant()]

    def _on_peer_aborted(self, event: PeerAborted, now: float) -> _Move:
        if self._state in _ENDING:
            return self._state, []
        return self._give_up(event.why, tell_peer=False)

    def _on_peer_quiet(self, event: PeerQuiet, now: float) -> _Move:
        return self._state, []

    def _on_broken(self, event: Broken, now: float) -> _Move:
        if self._state in _ENDING:
            return self._state, []
        return self._give_up(event.why)

    def _on_quiet(self, event: Quiet, now: float) -> _Move:
        if self._state is S.FENCING or self._grant is None:
            return S.FAILED, [SendAbortAck(), Ended(self._why)]
        if event.why is not None:
            self._why = event.why
            return S.FAILED, [SendAbort(event.why), SendAbortAck(), Ended(event.why)]
        return S.SUCCEEDED, [SendLanded(self._grant), Ended(None)]

    def _on_tick(self, event: Tick, now: float) -> _Move:
        if self._state in _ENDING or now < self._deadline:
            return self._state, []
        return self._give_up(
            Why(ErrorReason.DEADLINE_EXCEEDED, f"the room was still {self._state.value} at its deadline")
        )

    def _give_up(self, why: Why, *, tell_peer: bool = True) -> _Move:
        self._why = why
        tell: list[Effect] = [SendAbort(why)] if tell_peer else []
        return S.FENCING, [*tell, Fence()]

    handlers: ClassVar[Mapping[type, Callable[..., _Move]]] = {
        LinkUp: _on_link_up,
        PagesReserved: _on_pages_reserved,
        ChunkSeen: _on_seen,
        ChunkClaimed: _on_claimed,
        CompleteClaimed: _on_complete,
        PeerAborted: _on_peer_aborted,
        PeerQuiet: _on_peer_quiet,
        Broken: _on_broken,
        Quiet: _on_quiet,
        Tick: _on_tick,
    }
