"""Errors on the wire."""

from __future__ import annotations

import grpc
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.errors import from_rpc_error, to_status


def arrived(code: grpc.StatusCode, details: str, metadata=()) -> TandemError:
    return from_rpc_error(grpc.aio.AioRpcError(code, None, grpc.aio.Metadata(*metadata), details))


@pytest.mark.parametrize("reason", ErrorReason)
def test_every_reason_survives_the_wire(reason):
    status = to_status(TandemError(reason, "why", field="n"))
    error = arrived(status.code, status.details, status.trailing_metadata)
    assert (error.reason, error.message, error.field) == (reason, "why", "n")


def test_no_field_stays_no_field():
    status = to_status(TandemError(ErrorReason.OVERLOADED))
    assert arrived(status.code, status.details, status.trailing_metadata).field is None


def test_long_texts_are_cut():
    assert len(to_status(TandemError(ErrorReason.INTERNAL, "x" * 9999)).details) == 2000


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, ErrorReason.PEER_LOST),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ErrorReason.DEADLINE_EXCEEDED),
        (grpc.StatusCode.CANCELLED, ErrorReason.CANCELLED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ErrorReason.OVERLOADED),
        (grpc.StatusCode.UNIMPLEMENTED, ErrorReason.NOT_SUPPORTED),
        (grpc.StatusCode.UNKNOWN, ErrorReason.INTERNAL),
        (grpc.StatusCode.NOT_FOUND, ErrorReason.INTERNAL),
    ],
)
def test_bare_statuses(code, reason):
    assert arrived(code, "from gRPC").reason is reason
    assert from_rpc_error(grpc.aio.AioRpcError(code)).reason is reason


def test_a_reason_of_a_newer_build_is_internal():
    assert arrived(grpc.StatusCode.ABORTED, "", [("tandem-reason", "FUTURE")]).reason is ErrorReason.INTERNAL
