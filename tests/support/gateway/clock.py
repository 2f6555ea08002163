"""A clock that a test moves by hand."""

from __future__ import annotations


class HandClock:
    """tandem.core.clock.Clock that stands still until `now_s` is set."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def monotonic(self) -> float:
        """As set."""
        return self.now_s

    def wall_ms(self) -> int:
        """The same, in milliseconds."""
        return int(self.now_s * 1000)
