"""The virtual clock: what is to happen, in order, and everything random."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Final

RECENT: Final = 200
"""Lines of a trace that are kept to be shown."""


class Agenda:
    """Runs actions in order of their time; the same seed runs the same actions."""

    def __init__(self, seed: int) -> None:
        """seed: the only source of chance."""
        self.dice = random.Random(seed)
        self.now = 0.0
        self.recent: deque[str] = deque(maxlen=RECENT)
        self._due: list[tuple[float, int, str, Callable[[], None]]] = []
        self._tickets = itertools.count()
        self._digest = hashlib.blake2b(digest_size=16)

    def after(self, delay_s: float, note: str, action: Callable[[], None]) -> None:
        """In `delay_s` virtual seconds; actions of one moment keep their order."""
        heapq.heappush(self._due, (self.now + delay_s, next(self._tickets), note, action))

    def soon(self, most_s: float, note: str, action: Callable[[], None]) -> None:
        """At a random moment within `most_s`."""
        self.after(self.dice.random() * most_s, note, action)

    def run(self, until_s: float) -> None:
        """Runs what is due until then."""
        while self._due and self._due[0][0] <= until_s:
            self.now, _, note, action = heapq.heappop(self._due)
            line = f"{self.now:9.4f} {note}"
            self.recent.append(line)
            self._digest.update(line.encode())
            action()

    @property
    def fingerprint(self) -> str:
        """Of everything that has happened."""
        return self._digest.hexdigest()
