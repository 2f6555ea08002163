"""The one catalogue of errors: every failure in Tandem is one of these reasons.

Callers branch on the reason, never on a text. A test checks that the catalogue is total, and that
docs/errors.md lists every reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class ErrorReason(Enum):
    """Why something failed."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    CONTEXT_TOO_LONG = "CONTEXT_TOO_LONG"
    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    UNKNOWN_RESPONSE = "UNKNOWN_RESPONSE"
    UNKNOWN_ENDPOINT = "UNKNOWN_ENDPOINT"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    BODY_TOO_LARGE = "BODY_TOO_LARGE"
    BODY_TOO_SLOW = "BODY_TOO_SLOW"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    FORBIDDEN = "FORBIDDEN"
    NOT_SUPPORTED = "NOT_SUPPORTED"
    VERSION_MISMATCH = "VERSION_MISMATCH"
    LAYOUT_MISMATCH = "LAYOUT_MISMATCH"
    NOT_REGISTERED = "NOT_REGISTERED"
    UNKNOWN_WORKER = "UNKNOWN_WORKER"
    STALE_INCARNATION = "STALE_INCARNATION"
    STALE_LINK = "STALE_LINK"
    UNKNOWN_ROOM = "UNKNOWN_ROOM"
    ROOM_EXISTS = "ROOM_EXISTS"
    BAD_NONCE = "BAD_NONCE"
    NO_WORKER = "NO_WORKER"
    NO_TOKENIZER = "NO_TOKENIZER"
    OVERLOADED = "OVERLOADED"
    RATE_LIMITED = "RATE_LIMITED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    POOL_EXHAUSTED = "POOL_EXHAUSTED"
    DRAINING = "DRAINING"
    PEER_LOST = "PEER_LOST"
    LINK_LOST = "LINK_LOST"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    CHECKSUM_MISMATCH = "CHECKSUM_MISMATCH"
    OUT_OF_GRANT = "OUT_OF_GRANT"
    GRANT_CLOSED = "GRANT_CLOSED"
    TRANSFER_FAILED = "TRANSFER_FAILED"
    PROTOCOL_VIOLATION = "PROTOCOL_VIOLATION"
    ENGINE_FAILED = "ENGINE_FAILED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """What the outside sees of a reason."""

    grpc_code: str
    """Name of the gRPC status code."""
    http_status: int
    """HTTP status at the gateway."""
    retryable: bool
    """Whether another attempt, on other workers, may do better."""
    public_text: str
    """One sentence that is safe to show to anyone; the error's own message is added where it is, too."""


CATALOGUE: Final[dict[ErrorReason, ErrorSpec]] = {
    ErrorReason.INVALID_ARGUMENT: ErrorSpec("INVALID_ARGUMENT", 400, False, "A field has a value that is not allowed."),
    ErrorReason.CONTEXT_TOO_LONG: ErrorSpec(
        "INVALID_ARGUMENT", 400, False, "The prompt does not fit the model's context."
    ),
    ErrorReason.UNKNOWN_MODEL: ErrorSpec("NOT_FOUND", 404, False, "There is no such model here."),
    ErrorReason.UNKNOWN_RESPONSE: ErrorSpec("NOT_FOUND", 404, False, "There is no such response here, or no longer."),
    ErrorReason.UNKNOWN_ENDPOINT: ErrorSpec("UNIMPLEMENTED", 404, False, "There is no such endpoint."),
    ErrorReason.METHOD_NOT_ALLOWED: ErrorSpec(
        "UNIMPLEMENTED", 405, False, "The endpoint does not take this HTTP method."
    ),
    ErrorReason.BODY_TOO_LARGE: ErrorSpec("INVALID_ARGUMENT", 413, False, "The request body is too large."),
    ErrorReason.BODY_TOO_SLOW: ErrorSpec("DEADLINE_EXCEEDED", 408, False, "The request body came too slowly."),
    ErrorReason.UNAUTHENTICATED: ErrorSpec("UNAUTHENTICATED", 401, False, "A valid credential is needed."),
    ErrorReason.FORBIDDEN: ErrorSpec("PERMISSION_DENIED", 403, False, "Only an operator may do this."),
    ErrorReason.NOT_SUPPORTED: ErrorSpec("UNIMPLEMENTED", 501, False, "This is not supported."),
    ErrorReason.VERSION_MISMATCH: ErrorSpec(
        "FAILED_PRECONDITION", 500, False, "Two processes speak different protocol versions."
    ),
    ErrorReason.LAYOUT_MISMATCH: ErrorSpec(
        "FAILED_PRECONDITION", 500, False, "The KV layouts of two workers do not fit."
    ),
    ErrorReason.NOT_REGISTERED: ErrorSpec("NOT_FOUND", 500, True, "The worker is not registered."),
    ErrorReason.UNKNOWN_WORKER: ErrorSpec("NOT_FOUND", 404, False, "There is no such worker."),
    ErrorReason.STALE_INCARNATION: ErrorSpec("ABORTED", 503, True, "A newer life of the worker is registered."),
    ErrorReason.STALE_LINK: ErrorSpec("ABORTED", 503, True, "The link has been replaced."),
    ErrorReason.UNKNOWN_ROOM: ErrorSpec("NOT_FOUND", 500, True, "The room is not known, or has ended."),
    ErrorReason.ROOM_EXISTS: ErrorSpec("ALREADY_EXISTS", 500, True, "The room exists already."),
    ErrorReason.BAD_NONCE: ErrorSpec("PERMISSION_DENIED", 500, False, "The room's token does not match."),
    ErrorReason.NO_WORKER: ErrorSpec("UNAVAILABLE", 503, True, "No worker can take the request now."),
    ErrorReason.NO_TOKENIZER: ErrorSpec(
        "FAILED_PRECONDITION", 503, False, "The gateway has no tokenizer for the model."
    ),
    ErrorReason.OVERLOADED: ErrorSpec("RESOURCE_EXHAUSTED", 429, True, "Too many requests at the moment."),
    ErrorReason.RATE_LIMITED: ErrorSpec(
        "RESOURCE_EXHAUSTED", 429, False, "The key has used what it may use per minute."
    ),
    ErrorReason.QUOTA_EXCEEDED: ErrorSpec(
        "RESOURCE_EXHAUSTED", 429, False, "The key has used what it may use per day."
    ),
    ErrorReason.POOL_EXHAUSTED: ErrorSpec("RESOURCE_EXHAUSTED", 503, True, "No KV pages are free at the moment."),
    ErrorReason.DRAINING: ErrorSpec("UNAVAILABLE", 503, True, "The worker is shutting down."),
    ErrorReason.PEER_LOST: ErrorSpec("UNAVAILABLE", 502, True, "A worker was lost."),
    ErrorReason.LINK_LOST: ErrorSpec("UNAVAILABLE", 502, True, "The connection between two workers was lost."),
    ErrorReason.DEADLINE_EXCEEDED: ErrorSpec("DEADLINE_EXCEEDED", 504, False, "The request ran out of time."),
    ErrorReason.CANCELLED: ErrorSpec("CANCELLED", 499, False, "The request was cancelled."),
    ErrorReason.CHECKSUM_MISMATCH: ErrorSpec("DATA_LOSS", 502, True, "The transferred KV cache did not arrive intact."),
    ErrorReason.OUT_OF_GRANT: ErrorSpec("PERMISSION_DENIED", 500, False, "A write left its granted range."),
    ErrorReason.GRANT_CLOSED: ErrorSpec("FAILED_PRECONDITION", 502, True, "The grant is closed."),
    ErrorReason.TRANSFER_FAILED: ErrorSpec("UNAVAILABLE", 502, True, "The KV transfer failed."),
    ErrorReason.PROTOCOL_VIOLATION: ErrorSpec("INTERNAL", 500, False, "A process broke the protocol."),
    ErrorReason.ENGINE_FAILED: ErrorSpec("INTERNAL", 500, True, "The engine failed."),
    ErrorReason.INTERNAL: ErrorSpec("INTERNAL", 500, False, "Something went wrong inside."),
}


class TandemError(Exception):
    """Any failure that Tandem knows. `field` names the request field at fault, where there is one; `retry_after_s` is
    the time after which another request may do better, where that is known."""

    def __init__(
        self,
        reason: ErrorReason,
        message: str = "",
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.reason = reason
        self.message = message or CATALOGUE[reason].public_text
        self.field = field
        self.retry_after_s = retry_after_s
        super().__init__(f"{reason.value}: {self.message}")

    @property
    def spec(self) -> ErrorSpec:
        """The catalogue's entry of this reason."""
        return CATALOGUE[self.reason]


def reason_of(name: str) -> ErrorReason:
    """Reads a reason that came over the wire; one that this build does not know becomes INTERNAL."""
    return ErrorReason.__members__.get(name, ErrorReason.INTERNAL)
