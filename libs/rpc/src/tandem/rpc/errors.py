"""Errors on the wire: the catalogue's gRPC code, the text as details, and the reason as metadata.

The reason travels in the trailing metadata `tandem-reason`, the field at fault, if any, in
`tandem-field`. An error without a reason comes from gRPC itself, or from a stranger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import grpc

from tandem.core.errors import ErrorReason, TandemError, reason_of

REASON_KEY: Final = "tandem-reason"
FIELD_KEY: Final = "tandem-field"
MAX_DETAILS_CHARS: Final = 2000

_WITHOUT_REASON: Final[dict[grpc.StatusCode, ErrorReason]] = {
    grpc.StatusCode.UNAVAILABLE: ErrorReason.PEER_LOST,
    grpc.StatusCode.DEADLINE_EXCEEDED: ErrorReason.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED: ErrorReason.CANCELLED,
    grpc.StatusCode.INVALID_ARGUMENT: ErrorReason.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ErrorReason.OVERLOADED,
    grpc.StatusCode.UNIMPLEMENTED: ErrorReason.NOT_SUPPORTED,
    grpc.StatusCode.UNAUTHENTICATED: ErrorReason.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: ErrorReason.FORBIDDEN,
}
"""What a bare gRPC status means; every other one is INTERNAL."""


@dataclass(frozen=True, slots=True)
class RpcStatus:
    """An error as gRPC sends it."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str], ...]


def to_status(error: TandemError) -> RpcStatus:
    """The gRPC status of an error. The text is cut to 2,000 characters."""
    metadata = [(REASON_KEY, error.reason.value)]
    if error.field is not None:
        metadata.append((FIELD_KEY, error.field))
    return RpcStatus(grpc.StatusCode[error.spec.grpc_code], error.message[:MAX_DETAILS_CHARS], tuple(metadata))


def from_rpc_error(error: grpc.aio.AioRpcError) -> TandemError:
    """The error that a peer raised, or what a bare gRPC status means."""
    metadata = error.trailing_metadata() or grpc.aio.Metadata()
    name = metadata.get(REASON_KEY)
    reason = reason_of(str(name)) if name is not None else _WITHOUT_REASON.get(error.code(), ErrorReason.INTERNAL)
    field = metadata.get(FIELD_KEY)
    text = error.details() or error.code().name
    return TandemError(reason, text, field=None if field is None else str(field))
