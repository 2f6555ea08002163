"""How fast a queue goes down: the cost that left it by the time that something waited, the last of it counting most."""

from __future__ import annotations

import math
from typing import Final

MEMORY_S: Final = 20.0
"""What is as old counts 1/e."""
LEAST_SEEN: Final = 4
"""Requests that must have left before anything is said."""


class ServiceRate:
    """Pure; told of what left and of the time that passed."""

    __slots__ = ("_cost", "_seen", "_time_s")

    def __init__(self) -> None:
        self._cost = 0.0
        self._time_s = 0.0
        self._seen = 0

    @property
    def per_s(self) -> float | None:
        """Cost per second; None while too little is known."""
        if self._seen < LEAST_SEEN or self._cost <= 0 or self._time_s <= 0:
            return None
        return self._cost / self._time_s

    def saw(self, cost: int, count: int, passed_s: float) -> None:
        """Requests left the queue. passed_s: time since the last call during which something waited."""
        kept = math.exp(-passed_s / MEMORY_S)
        self._cost = self._cost * kept + cost
        self._time_s = self._time_s * kept + passed_s
        self._seen += count
