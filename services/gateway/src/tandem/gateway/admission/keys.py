"""Which keys open the gateway: those of its settings, and those of a file that may change while it runs."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tandem.core import api_keys
from tandem.gateway.admission.watched_file import WatchedFile

log = logging.getLogger(__name__)


class KeyRing:
    """Tells whose key a request carries."""

    def __init__(
        self, keys: Sequence[str] = (), file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """keys: known by their place, `key-1` and so on. With a file, even an empty one, a request needs a key.

        Raises INVALID_ARGUMENT or OSError if the file can't be used.
        """
        self._settings = {f"key-{place}": api_keys.digest_of(key) for place, key in enumerate(keys, start=1)}
        self._file = None if file is None else WatchedFile(file, api_keys.parse, clock)
        if self._file is not None:
            log.info("%d keys in %s", len(self._file.value()), file)

    @property
    def open(self) -> bool:
        """Whether requests need no key."""
        return self._file is None and not self._settings

    def owner_of(self, key: str) -> str | None:
        """The name of a key, or None if it is nobody's. Every digest is compared, so that the time tells nothing."""
        digest = api_keys.digest_of(key)
        known = [*self._settings.items(), *(() if self._file is None else self._file.value().items())]
        owners = [name for name, one in known if hmac.compare_digest(digest, one)]
        return owners[0] if owners else None
