"""How much time a client gives its request."""

from __future__ import annotations

import re
from typing import Final

from tandem.core.errors import ErrorReason, TandemError

HEADER: Final = "X-Request-Timeout"
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
            f"The header {HEADER} must be a number of seconds above 0, such as 30 or 0.5, not {given[:40]!r}; more than"
            f" {most_s:g} is taken as {most_s:g}.",
            field=HEADER,
        )
    return min(seconds, most_s)
