"""Errors as a client of the HTTP API sees them: OpenAI's or Anthropic's shape, status and headers of the catalogue."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
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
_ANTHROPIC_TYPES: Final = _TYPES | {413: "request_too_large", 504: "timeout_error"}
_RETRY_AFTER: Final = frozenset({429, 503})
"""Statuses that tell the client to come back."""
MAX_RETRY_AFTER_S: Final = 86_400
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


class ErrorShape(Enum):
    """Whose clients read it."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


def shape_of(path: str) -> ErrorShape:
    """The shape of an endpoint's errors."""
    return ErrorShape.ANTHROPIC if path.startswith("/v1/messages") else ErrorShape.OPENAI


def problem_of(error: TandemError, retry_after_s: int = 1, shape: ErrorShape = ErrorShape.OPENAI) -> Problem:
    """Dresses an error for the client. retry_after_s: seconds after which to come back, where that may help and the
    error does not know better."""
    spec = CATALOGUE[error.reason]
    message = spec.public_text if error.reason in _PRIVATE else error.message
    headers: dict[str, str] = {}
    if spec.http_status in _RETRY_AFTER:
        after_s = retry_after_s if error.retry_after_s is None else max(1, math.ceil(error.retry_after_s))
        headers["Retry-After"] = str(min(after_s, MAX_RETRY_AFTER_S))
    if error.reason is ErrorReason.NOT_SUPPORTED:
        # OpenAI's clients would ask again after every status from 500 on.
        headers["X-Should-Retry"] = "false"
    about = {"message": message, "param": error.field, "code": error.reason.value.lower()}
    return Problem(spec.http_status, error.reason, _dressed(about, spec.http_status, shape), headers)


def _dressed(about: dict[str, Any], status: int, shape: ErrorShape) -> dict[str, Any]:
    rest = "invalid_request_error" if status < 500 else None
    if shape is ErrorShape.ANTHROPIC:
        return {"type": "error", "error": {"type": _ANTHROPIC_TYPES.get(status, rest or "api_error"), **about}}
    return {"error": {"type": _TYPES.get(status, rest or "server_error"), **about}}
