"""How many retries a gateway may make over all its requests, so that a sick cluster is not asked many times as much.

Pure: time is handed in, in monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

REFILL_S: Final = 60.0
"""In which an empty budget fills by itself, however few requests come."""


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """What a budget holds, and what fills it."""

    burst: int = 1024
    """Retries that may follow each other at once: as many as there are answers at work, so that each can go on
    elsewhere when its worker is lost. 0 = no retries."""
    ratio: float = 0.2
    """Retries that each new sequence pays in."""


class RetryBudget:
    """Full at first. In the long run there are `ratio` retries per sequence, and `burst` per REFILL_S."""

    def __init__(self, settings: BudgetSettings, now: float) -> None:
        self._settings = settings
        self._left = float(settings.burst)
        self._since = now

    def left(self, now: float) -> float:
        """Retries that may be made now."""
        return self._fill(now, 0.0)

    def began(self, now: float) -> None:
        """A new sequence has come."""
        self._fill(now, self._settings.ratio)

    def take(self, now: float) -> bool:
        """Takes one retry; False if there is none."""
        if self._fill(now, 0.0) < 1:
            return False
        self._left -= 1
        return True

    def _fill(self, now: float, paid: float) -> float:
        burst = self._settings.burst
        grown = max(0.0, now - self._since) * burst / REFILL_S
        self._since = max(now, self._since)
        self._left = min(float(burst), self._left + grown + paid)
        return self._left
