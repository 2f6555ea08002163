"""Places that nobody waits for."""

from __future__ import annotations

from typing import Self

from tandem.core.refusals import Refusal, Refused


class Slots:
    """Counts places; who gets none is told to come back."""

    def __init__(self, most: int) -> None:
        self.most = most
        """Places in all."""
        self.used = 0
        """Places taken."""

    def holding(self) -> Place:
        """Takes one place. Raises Refused if there is none."""
        if self.used >= self.most:
            raise Refused(Refusal.FULL, f"{self.used} of {self.most} places are taken. Try again in a moment.")
        return Place(self)


class Place:
    """One of them, given back when its context ends or before."""

    __slots__ = ("_slots",)

    def __init__(self, slots: Slots) -> None:
        self._slots: Slots | None = slots
        slots.used += 1

    def give_back(self) -> None:
        """Somebody else may have it. Nothing happens the second time."""
        if self._slots is not None:
            self._slots.used -= 1
            self._slots = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()
