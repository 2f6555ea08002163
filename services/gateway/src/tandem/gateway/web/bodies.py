"""Bodies of requests, read up to a bound."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from tandem.core.errors import ErrorReason, TandemError

READ_TIMEOUT_MS: Final = 30_000


async def read_body_in_time(scope: Scope, receive: Receive, max_bytes: int, timeout_ms: int) -> bytes:
    """As `read_body`; raises BODY_TOO_SLOW too."""
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            return await read_body(scope, receive, max_bytes)
    except TimeoutError:
        text = f"The body was not there after {timeout_ms / 1000:g} s, the most that is waited for it."
        raise TandemError(ErrorReason.BODY_TOO_SLOW, text) from None


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Reads a request's body. Raises BODY_TOO_LARGE, before reading where the headers say so; CANCELLED."""
    declared = Headers(scope=scope).get("content-length", "")
    parts: list[bytes] = []
    size = int(declared) if declared.isdecimal() and int(declared) > max_bytes else 0
    while size <= max_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise TandemError(ErrorReason.CANCELLED, "The client went before its request was complete.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if not message.get("more_body", False) and size <= max_bytes:
            return b"".join(parts)
    raise TandemError(
        ErrorReason.BODY_TOO_LARGE,
        f"The body has more than {max_bytes} bytes, which is the most that is taken. Send less at a time.",
    )
