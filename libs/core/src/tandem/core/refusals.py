"""Why a request that is well-formed is not taken now: one error, with the reason that operators count."""

from __future__ import annotations

from enum import Enum

from tandem.core.errors import ErrorReason, TandemError


class Refusal(Enum):
    """What it came up against."""

    FULL = "full"
    """The queue."""
    DISPLACED = "displaced"
    """Its place in the queue went to a request with more right to it."""
    TOO_LATE = "too_late"
    """It would get its turn after its deadline."""
    EXPIRED = "expired"
    """Its deadline came while it waited."""
    REQUESTS = "requests"
    """Its tenant's requests per minute."""
    TOKENS = "tokens"
    """Its tenant's tokens per minute."""
    QUOTA = "quota"
    """Its tenant's tokens per day."""


class Refused(TandemError):
    """A request is refused, though it may be taken at another time."""

    def __init__(
        self,
        refusal: Refusal,
        message: str,
        *,
        retry_after_s: float | None = None,
        reason: ErrorReason = ErrorReason.OVERLOADED,
    ) -> None:
        super().__init__(reason, message, retry_after_s=retry_after_s)
        self.refusal = refusal
