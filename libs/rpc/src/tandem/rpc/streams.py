"""Streams of requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

from tandem.core.errors import ErrorReason, TandemError

T = TypeVar("T")


async def first_of(requests: AsyncIterator[T], wanted: str) -> T:
    """The first request of a stream. Raises PROTOCOL_VIOLATION, saying what was wanted, if it ends before."""
    try:
        return await anext(aiter(requests))
    except StopAsyncIteration:
        raise TandemError(ErrorReason.PROTOCOL_VIOLATION, wanted) from None
