"""A file that may change while the gateway runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from tandem.core.errors import ErrorReason, TandemError

log = logging.getLogger(__name__)

CHECK_INTERVAL_S: Final = 1.0
"""The file is looked at by a request, and no more often than this."""
MAX_FILE_BYTES: Final = 1 << 20
_Stamp = tuple[int, int, int]
_T = TypeVar("_T")


class WatchedFile(Generic[_T]):
    """What a file says, read again when it has changed. One that can't be used leaves things as they were."""

    def __init__(self, path: Path, parse: Callable[[str], _T], clock: Callable[[], float] = time.monotonic) -> None:
        """parse: raises TandemError for what it can't use.

        Raises INVALID_ARGUMENT or OSError if the file can't be used.
        """
        self._path = path
        self._parse = parse
        self._clock = clock
        self._stamp = _stamp(path)
        self._value = self._read()
        self._next_look = clock() + CHECK_INTERVAL_S

    def value(self) -> _T:
        """What it says; the same object as long as it has not changed."""
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + CHECK_INTERVAL_S
            self._look()
        return self._value

    def _look(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._value = self._read()
        except (TandemError, OSError) as error:
            log.error("what a file said before stays, as it can't be used: %s", error)
        else:
            log.info("%s has changed", self._path)

    def _read(self) -> _T:
        with self._path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{self._path} is longer than {MAX_FILE_BYTES} bytes")
        try:
            return self._parse(data.decode())
        except UnicodeDecodeError:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{self._path} is not UTF-8") from None
        except TandemError as error:
            raise TandemError(error.reason, f"{self._path}: {error.message}", field=error.field) from None


def _stamp(path: Path) -> _Stamp | None:
    """What changes when a file does; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
