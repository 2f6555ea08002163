"""Answers of /v1/responses that are kept, to be read again and gone on from: bounded, in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.calls import Message


@dataclass(frozen=True, slots=True)
class Kept:
    """One answer."""

    id: str
    document: bytes
    """JSON, as it was answered."""
    messages: tuple[Message, ...]
    """The chat up to and with this answer, without its instructions."""
    owner: str = ""
    """Name of the key that asked for it; empty where none is needed."""

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.document) + sum(message.characters for message in self.messages)


@dataclass(frozen=True, slots=True)
class KeepLimits:
    """How much is kept; the oldest go first."""

    count: int
    """0 = nothing is kept."""
    max_bytes: int
    age_s: float


class ResponseStore:
    """Answers by id."""

    def __init__(self, limits: KeepLimits, now: Callable[[], float]) -> None:
        """now: monotonic seconds."""
        self._limits = limits
        self._now = now
        self._kept: OrderedDict[str, tuple[float, Kept]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        """Answers that are kept."""
        self._expire()
        return len(self._kept)

    def put(self, kept: Kept) -> None:
        """Keeps an answer, unless it alone is more than may be kept."""
        if not self._limits.count or kept.size > self._limits.max_bytes:
            return
        self._kept[kept.id] = (self._now(), kept)
        self._bytes += kept.size
        while len(self._kept) > self._limits.count or self._bytes > self._limits.max_bytes:
            self._forget(next(iter(self._kept)))

    def get(self, response_id: str, owner: str = "", field: str | None = None) -> Kept:
        """An answer of this owner. field: what named it. Raises UNKNOWN_RESPONSE if it is not kept, or no longer."""
        self._expire()
        found = self._kept.get(response_id)
        if found is None or found[1].owner != owner:
            raise self.unknown(response_id, field)
        return found[1]

    def unknown(self, response_id: str, field: str | None = None) -> TandemError:
        """What is said of an answer that is not kept."""
        return TandemError(
            ErrorReason.UNKNOWN_RESPONSE,
            f"There is no response {response_id[:100]!r} here, or no longer: this gateway keeps the last"
            f" {self._limits.count} for {self._limits.age_s:g} s at most.",
            field=field,
        )

    def delete(self, response_id: str, owner: str = "") -> None:
        """Forgets an answer. Raises as `get` does."""
        self.get(response_id, owner)
        self._forget(response_id)

    def _expire(self) -> None:
        oldest = self._now() - self._limits.age_s
        while self._kept and next(iter(self._kept.values()))[0] < oldest:
            self._forget(next(iter(self._kept)))

    def _forget(self, response_id: str) -> None:
        _, kept = self._kept.pop(response_id)
        self._bytes -= kept.size
