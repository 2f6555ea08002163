"""API keys of clients: what a key is, and the file of digests that a gateway checks keys against.

A key is made by us, 256 random bits, never chosen by a person. Nobody can try them all, so one SHA-256 hides a key as
well as a slow, salted hash would, and costs a microsecond per request.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from tandem.core.errors import ErrorReason, TandemError

PREFIX: Final = "tk_"
"""How every key starts, so that it is known for one wherever it turns up."""
KEY_BYTES: Final = 32
MAX_KEYS: Final = 4096
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def digest_of(key: str) -> bytes:
    """SHA-256 of a key, 32 bytes."""
    return hashlib.sha256(key.encode()).digest()


def line_of(name: str, key: str) -> str:
    """The line of a key file that lets a key in. Raises INVALID_ARGUMENT for a bad name."""
    if not _NAME.fullmatch(name):
        raise TandemError(ErrorReason.INVALID_ARGUMENT, "a key's name is 1 to 64 of A-Z a-z 0-9 . _ -", field="name")
    return f"{name}:{digest_of(key).hex()}"


def parse(text: str) -> Mapping[str, bytes]:
    """Name to digest, of a file with one `name:digest` per line; `#` begins a comment.

    Raises INVALID_ARGUMENT, which names the line and not what is in it: somebody may have pasted a key.
    """
    found: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        wanted = line.partition("#")[0].strip()
        if not wanted:
            continue
        name, _, digest = wanted.partition(":")
        if not _NAME.fullmatch(name) or not _DIGEST.fullmatch(digest.strip()):
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"line {number} is not NAME:SHA256 in hexadecimal digits")
        if name in found:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"line {number} names {name} a second time")
        found[name] = bytes.fromhex(digest.strip())
    if len(found) > MAX_KEYS:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{len(found)} keys; {MAX_KEYS} are allowed")
    return found
