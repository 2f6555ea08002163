"""Admission: how many sequences may be in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tandem.core.errors import ErrorReason, TandemError


class Slots:
    """Counts places. Nobody waits for one: who gets none is told to come back."""

    def __init__(self, most: int, on_change: Callable[[int], None] = lambda _: None) -> None:
        self.most = most
        """Places in all."""
        self._used = 0
        self._on_change = on_change

    @property
    def used(self) -> int:
        """Places taken."""
        return self._used

    def take(self, count: int, held: int = 0) -> None:
        """Takes places, all or none, for a request that holds some already.

        Raises OVERLOADED; INVALID_ARGUMENT if the request could never fit.
        """
        if held + count > self.most:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT,
                f"'n' times the number of prompts is {held + count} answers at once; at most {self.most} are allowed."
                " Split it over several requests.",
                field="n",
            )
        if self._used + count > self.most:
            raise TandemError(
                ErrorReason.OVERLOADED, f"{self._used} of {self.most} places are taken. Try again in a moment."
            )
        self._change(count)

    def give(self, count: int) -> None:
        """Gives places back."""
        self._change(-count)

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Takes one place; yields how to take more; gives all of them back."""
        self.take(1)
        taken = 1

        def take_more(count: int) -> None:
            nonlocal taken
            self.take(count, held=taken)
            taken += count

        try:
            yield take_more
        finally:
            self.give(taken)

    def _change(self, count: int) -> None:
        self._used += count
        self._on_change(self._used)
