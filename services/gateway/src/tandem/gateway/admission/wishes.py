"""What a client wishes of how its request is treated: its time, its class of priority."""

from __future__ import annotations

import re
from typing import Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.fair_queue import Priority

TIMEOUT_HEADER: Final = "X-Request-Timeout"
PRIORITY_HEADER: Final = "X-Request-Priority"
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?|\.[0-9]{1,9}")


def timeout_s(given: str, most_s: float) -> float:
    """Seconds that a request may take. given: what the header says, empty without one; more than `most_s` is `most_s`.

    Raises INVALID_ARGUMENT.
    """
    if not given:
        return most_s
    text = given.strip()
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    if seconds <= 0:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT,
            f"The header {TIMEOUT_HEADER} must be a number of seconds above 0, such as 30 or 0.5, not {given[:40]!r};"
            f" more than {most_s:g} is taken as {most_s:g}.",
            field=TIMEOUT_HEADER,
        )
    return min(seconds, most_s)


def priority_of(given: str | None, where: str) -> Priority | None:
    """The class that a request asks for; None if it asks for none. where: names the header or field of `given`.

    Raises INVALID_ARGUMENT.
    """
    if given is None:
        return None
    try:
        return Priority(given.strip())
    except ValueError:
        allowed = ", ".join(repr(one.value) for one in Priority)
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT, f"'{where}' must be one of {allowed}, not {given[:40]!r}.", field=where
        ) from None
