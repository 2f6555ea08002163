"""A part of a whole that several processes have together. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Share:
    """Which of `count` equal parts."""

    index: int = 0
    """0..count-1."""
    count: int = 1

    def of(self, whole: int) -> int:
        """This part of a number; those of all processes add up to it."""
        part, rest = divmod(whole, self.count)
        return part + (self.index < rest)


WHOLE: Final = Share()
