"""Where the dashboard gets the traces of the last requests from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ShownSpan:
    """One step of a request."""

    name: str
    service: str
    """Who did it: gateway, or a worker's id."""
    offset_ms: float
    """Its begin, after that of the trace."""
    duration_ms: float
    parent: int | None
    """Place of its parent in the trace's spans; None = it has none here."""
    status: str
    """ok, or the reason for which it failed."""
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Numbers and names, such as pages and provider. Never text of a prompt or an answer."""


@dataclass(frozen=True, slots=True)
class ShownTrace:
    """One request."""

    request_id: str
    duration_ms: float
    spans: Sequence[ShownSpan]
    """Parents before their children."""


class TraceSource(Protocol):
    """Keeps the traces of the last requests."""

    def last(self, count: int) -> Sequence[ShownTrace]:
        """At most so many, the newest first. Called once a second while somebody looks; must not block."""


class NoTraces:
    """A gateway that keeps none."""

    def last(self, count: int) -> Sequence[ShownTrace]:
        """None."""
        del count
        return ()
