"""The virtual clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Agenda:
    """Runs actions in order of their time; those of one moment in the order in which they were planned."""

    def __init__(self) -> None:
        self.now = 0.0
        """Virtual seconds."""
        self.ran = 0
        """Actions so far."""
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._tickets = 0

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        """At that time, which is not over."""
        self._tickets += 1
        heapq.heappush(self._due, (when_s, self._tickets, action))

    def run(self) -> None:
        """Until nothing is left to do."""
        due = self._due
        while due:
            self.now, _, action = heapq.heappop(due)
            self.ran += 1
            action()
