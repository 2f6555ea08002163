"""Places that nobody waits for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tandem.core.refusals import Refusal, Refused


class Slots:
    """Counts places; who gets none is told to come back."""

    def __init__(self, most: int) -> None:
        self.most = most
        """Places in all."""
        self.used = 0
        """Places taken."""

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Takes one place and gives it back. Raises Refused if there is none."""
        if self.used >= self.most:
            raise Refused(Refusal.FULL, f"{self.used} of {self.most} places are taken. Try again in a moment.")
        self.used += 1
        try:
            yield
        finally:
            self.used -= 1
