"""W3C trace context: parse, mint and pass on a `traceparent`."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Final

TRACEPARENT_KEY: Final = "traceparent"
"""Metadata key and HTTP header."""
TRACESTATE_KEY: Final = "tracestate"
"""The same, for what vendors say of a trace."""

_PATTERN: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

current_traceparent: ContextVar[str] = ContextVar("tandem_traceparent", default="")
"""Trace context of the task that runs, or empty."""


def metadata() -> tuple[tuple[str, str], ...]:
    """Metadata of a call that is made for whoever called this task: its trace, if it has one."""
    current = current_traceparent.get()
    return ((TRACEPARENT_KEY, current),) if current else ()


@dataclass(frozen=True, slots=True)
class TraceParent:
    """One span of a trace."""

    trace_id: int
    """128 bits, not 0."""
    span_id: int
    """64 bits, not 0."""
    sampled: bool = True

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"

    @property
    def trace_id_hex(self) -> str:
        """32 hexadecimal digits."""
        return f"{self.trace_id:032x}"

    def child(self, span_bits: int) -> TraceParent:
        """Another span of the same trace, given 64 random bits."""
        return replace(self, span_id=_nonzero(span_bits, 64))


def _nonzero(bits: int, width: int) -> int:
    return bits % ((1 << width) - 1) + 1


def mint(trace_bits: int, span_bits: int, *, sampled: bool = True) -> TraceParent:
    """A new trace, given 128 and 64 random bits."""
    return TraceParent(_nonzero(trace_bits, 128), _nonzero(span_bits, 64), sampled)


def parse(text: str) -> TraceParent | None:
    """Reads a traceparent; None if it is none, as the standard asks (start a new trace then)."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or int(trace_id, 16) == 0 or int(span_id, 16) == 0:
        return None
    return TraceParent(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & 1))
