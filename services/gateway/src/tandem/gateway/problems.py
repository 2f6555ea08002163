"""Errors as a client of the HTTP API sees them: OpenAI's shape, with HTTP status and headers from the catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from tandem.core.errors import CATALOGUE, ErrorReason, TandemError

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_RETRY_AFTER: Final = frozenset({429, 503})
"""Statuses that tell the client to come back."""
_PRIVATE: Final = frozenset({ErrorReason.INTERNAL, ErrorReason.PROTOCOL_VIOLATION})
"""Reasons whose own message may speak of our insides."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error ready to be sent."""

    status: int
    reason: ErrorReason
    body: dict[str, Any]
    headers: dict[str, str]

    def json(self) -> bytes:
        """The body as JSON."""
        return orjson.dumps(self.body)


def problem_of(error: TandemError, retry_after_s: int = 1) -> Problem:
    """Dresses an error for the client. retry_after_s: seconds after which to come back, where that may help."""
    spec = CATALOGUE[error.reason]
    message = spec.public_text if error.reason in _PRIVATE else error.message
    kind = _TYPES.get(spec.http_status, "invalid_request_error" if spec.http_status < 500 else "server_error")
    headers = {"Retry-After": str(retry_after_s)} if spec.http_status in _RETRY_AFTER else {}
    if error.reason is ErrorReason.NOT_SUPPORTED:
        # OpenAI's clients would ask again after every status from 500 on.
        headers["X-Should-Retry"] = "false"
    body = {"message": message, "type": kind, "param": error.field, "code": error.reason.value.lower()}
    return Problem(spec.http_status, error.reason, {"error": body}, headers)
