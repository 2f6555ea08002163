"""Which keys open the gateway: those of its settings, and those of a file that may change while it runs."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tandem.core import api_keys
from tandem.core.errors import ErrorReason, TandemError

log = logging.getLogger(__name__)

CHECK_INTERVAL_S: Final = 1.0
"""The file is looked at by a request, and no more often than this."""
MAX_FILE_BYTES: Final = 1 << 20
_Stamp = tuple[int, int, int]


class KeyRing:
    """Tells whose key a request carries."""

    def __init__(
        self, keys: Sequence[str] = (), file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """keys: known by their place, `key-1` and so on. With a file, even an empty one, a request needs a key.

        Raises INVALID_ARGUMENT or OSError if the file can't be used.
        """
        self._settings = {f"key-{place}": api_keys.digest_of(key) for place, key in enumerate(keys, start=1)}
        self._path = file
        self._clock = clock
        self._stamp: _Stamp | None = None
        self._file: Mapping[str, bytes] = {}
        self._next_look = clock() + CHECK_INTERVAL_S
        if file is not None:
            self._stamp = _stamp(file)
            self._file = _read(file)
            log.info("%d keys in %s", len(self._file), file)

    @property
    def open(self) -> bool:
        """Whether requests need no key."""
        return self._path is None and not self._settings

    def owner_of(self, key: str) -> str | None:
        """The name of a key, or None if it is nobody's. Every digest is compared, so that the time tells nothing."""
        self._look()
        digest = api_keys.digest_of(key)
        known = [*self._settings.items(), *self._file.items()]
        owners = [name for name, one in known if hmac.compare_digest(digest, one)]
        return owners[0] if owners else None

    def _look(self) -> None:
        """Reads the file again if it has changed. One that can't be used leaves the keys as they were."""
        if self._path is None or self._clock() < self._next_look:
            return
        self._next_look = self._clock() + CHECK_INTERVAL_S
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._file = _read(self._path)
        except (TandemError, OSError) as error:
            log.error("%s can't be used, so the %d keys of before stay: %s", self._path, len(self._file), error)
        else:
            log.info("%s has changed: %d keys", self._path, len(self._file))


def _stamp(path: Path) -> _Stamp | None:
    """What changes when a file does; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> Mapping[str, bytes]:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{path} is longer than {MAX_FILE_BYTES} bytes")
    try:
        return api_keys.parse(data.decode())
    except UnicodeDecodeError:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{path} is not UTF-8") from None
