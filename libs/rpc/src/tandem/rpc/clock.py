"""The system's clock."""

from __future__ import annotations

import time


class SystemClock:
    """tandem.core.clock.Clock on the system's clocks."""

    def monotonic(self) -> float:
        """Seconds that never go back; the same clock as the event loop's."""
        return time.monotonic()

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""
        return time.time_ns() // 1_000_000
