"""What one rank notes of a room's life, for its trace: plain spans, bounded, on a clock that is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from tandem.core.errors import ErrorReason

MAX_CHUNK_SPANS: Final = 256
"""Spans of chunks that are kept of one room on one rank; later ones are only counted."""


class Step(Enum):
    """Where the time of a room goes on a rank."""

    GRANT_WAIT = "grant_wait"
    """Prefill: from the ticket to decode's offer."""
    QUEUE = "queue"
    """Prefill: from the offer until the engine computes, where the engine says when that is."""
    COMPUTE = "compute"
    """Prefill: until the last chunk is computed; from the offer where the engine does not say when it began."""
    CHUNK = "chunk"
    """Prefill: one transfer."""
    LANDING = "landing"
    """Prefill: from its last word to decode's Landed."""
    LINK_WAIT = "link_wait"
    """Decode: from the ticket until the link to the prefill rank is there."""
    RESERVE = "reserve"
    """Decode: until the engine has pages for the prompt."""
    RECEIVE = "receive"
    """Decode: from the offer until everything has landed and is verified."""
    LANDED = "landed"
    """Decode: one chunk is in memory; a moment."""
    CLOSE = "close"
    """Decode: the grant is closed, and where the pool lies in a device the pages are copied there."""
    FENCE = "fence"
    """A room that failed: until nothing of it moves any more."""


_OF_CHUNKS: Final = frozenset({Step.CHUNK, Step.LANDED})


@dataclass(frozen=True, slots=True)
class RoomSpan:
    """One step. What does not belong to its kind is 0 or empty."""

    step: Step
    start_s: float
    """Seconds since the room was opened."""
    end_s: float
    """The same; never before start_s."""
    chunk: int = 0
    """Number of the chunk, from 0."""
    pages: int = 0
    """KV pages that are moved, or reserved."""
    bytes: int = 0
    provider: str = ""
    first_buffer: int = 0
    """First buffer of the KV pool that the chunk is of, where it is not of all."""
    buffers: int = 0
    """Buffers of the KV pool that the chunk is of; 0 = all."""
    prefix_tokens: int = 0
    """Tokens of the prompt that decode held already, which are not moved."""
    reason: ErrorReason | None = None
    """Why it did not end well."""


_Key = tuple[Step, int]


@dataclass(slots=True)
class Timeline:
    """Notes the steps of one room. A step that was not begun can't end; one that runs is not begun again."""

    clock: Callable[[], float]
    """Seconds, monotonic."""
    dropped: int = 0
    """Spans of chunks that were not kept."""
    _opened: float = field(init=False)
    _running: dict[_Key, RoomSpan] = field(init=False, default_factory=dict)
    _ended: list[RoomSpan] = field(init=False, default_factory=list)
    _chunks: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._opened = self.clock()

    def now(self) -> float:
        """Seconds since the room was opened."""
        return self.clock() - self._opened

    def begin(self, step: Step, *, chunk: int = 0, pages: int = 0, provider: str = "", prefix_tokens: int = 0) -> None:
        """A step begins."""
        now = self.now()
        span = RoomSpan(step, now, now, chunk, pages, provider=provider, prefix_tokens=prefix_tokens)
        self._running.setdefault((step, chunk), span)

    def begin_buffers(self, chunk: int, pages: int, provider: str, first_buffer: int, buffers: int) -> None:
        """A transfer begins that is of some buffers of the KV pool only."""
        now = self.now()
        span = RoomSpan(Step.CHUNK, now, now, chunk, pages, 0, provider, first_buffer, buffers)
        self._running.setdefault((Step.CHUNK, chunk), span)

    def end(
        self, step: Step, *, chunk: int = 0, pages: int = 0, moved: int = 0, reason: ErrorReason | None = None
    ) -> None:
        """A step ends. pages: where they were not known before. moved: bytes."""
        span = self._running.pop((step, chunk), None)
        if span is not None:
            self._keep(replace(span, end_s=self.now(), pages=pages or span.pages, bytes=moved, reason=reason))

    def note(self, span: RoomSpan) -> None:
        """A step that is known only once it is over."""
        self._keep(span)

    def fail(self, reason: ErrorReason) -> None:
        """Everything that runs ends, for this reason."""
        for step, chunk in list(self._running):
            self.end(step, chunk=chunk, reason=reason)

    def spans(self) -> tuple[RoomSpan, ...]:
        """All that has ended, in order of start."""
        return tuple(sorted(self._ended, key=lambda span: span.start_s))

    def _keep(self, span: RoomSpan) -> None:
        if span.step in _OF_CHUNKS:
            if self._chunks >= MAX_CHUNK_SPANS:
                self.dropped += 1
                return
            self._chunks += 1
        self._ended.append(span)
