"""The clock port: time is an input of the core, and shells get it from one of these."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Where a shell reads the time. The system's clock is tandem.rpc.clock.SystemClock."""

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean something."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970. May go back."""
        ...
