"""A token bucket: so much per minute, with what was not used saved up to one minute's worth."""

from __future__ import annotations

from typing import Final

PERIOD_S: Final = 60.0


class TokenBucket:
    """Pure: time is handed in, in monotonic seconds. What is taken may be given back."""

    __slots__ = ("_at", "_level", "per_min")

    def __init__(self, per_min: int, now: float) -> None:
        """per_min: at least 1; that much may be taken at once, too. It starts full."""
        self.per_min = per_min
        self._level = float(per_min)
        self._at = now

    def left(self, now: float) -> float:
        """What may be taken now."""
        level = min(float(self.per_min), self._level + max(0.0, now - self._at) * self.per_min / PERIOD_S)
        self._level, self._at = level, max(self._at, now)
        return level

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until an amount may be taken, 0 if now. Amounts above `per_min` never may."""
        return max(0.0, amount - self.left(now)) * PERIOD_S / self.per_min

    def take(self, amount: float, now: float) -> None:
        """Takes an amount, for which `wait_s` is 0."""
        self._level = self.left(now) - amount

    def give_back(self, amount: float, now: float) -> None:
        """Of what was taken, this was not needed."""
        self._level = min(float(self.per_min), self.left(now) + amount)

    def full_s(self, now: float) -> float:
        """Seconds until it is full, if nothing more is taken."""
        return (self.per_min - self.left(now)) * PERIOD_S / self.per_min
