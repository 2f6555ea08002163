"""New API keys: `tandem keys new`."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from tandem.core import api_keys
from tandem.core.errors import ErrorReason, TandemError


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that nobody else has seen."""

    key: str = field(repr=False)
    line: str
    """What the gateway's file says of it."""


def new(name: str, file: Path | None) -> NewKey:
    """Makes a key of 256 random bits, and appends its line to the file if there is one.

    Raises INVALID_ARGUMENT for a bad name, one that has a key already, and a file that can't be read or written.
    """
    key = api_keys.PREFIX + secrets.token_urlsafe(api_keys.KEY_BYTES)
    line = api_keys.line_of(name, key)
    if file is not None:
        try:
            _append(file, name, line)
        except (OSError, UnicodeDecodeError) as error:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{file} can't be used: {error}") from error
    return NewKey(key, line)


def _append(file: Path, name: str, line: str) -> None:
    """Adds one line, in place: a container may have mounted this very file."""
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    if name in api_keys.parse(before):
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{name} has a key in {file}; remove its line first")
    gap = "" if not before or before.endswith("\n") else "\n"
    with file.open("a", encoding="utf-8") as out:
        out.write(f"{gap}{line}\n")
