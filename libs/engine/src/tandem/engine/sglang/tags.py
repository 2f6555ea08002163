"""Reasons inside SGLang's error texts: the only way back from a scheduler rank to who submitted the request."""

from __future__ import annotations

import re
from typing import Final

from tandem.core.errors import ErrorReason
from tandem.core.room.events import Why

_TAG: Final = re.compile(r"\[tandem:([A-Z_]+)\] (.*)", re.DOTALL)


def write(why: Why) -> str:
    """A reason as text that read() finds inside a longer one."""
    return f"[tandem:{why.reason.value}] {why.message}"


def read(text: str) -> Why | None:
    """The reason inside a text, if there is one of ours."""
    found = _TAG.search(text)
    if found is None or found[1] not in ErrorReason.__members__:
        return None
    return Why(ErrorReason[found[1]], found[2])
