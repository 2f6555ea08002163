"""The network: delays, losses, repeats and partitions between the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable

from tandem.cli.sim.agenda import Agenda
from tandem.cli.sim.weather import Faults

DELAY_S = 0.3
"""Longest way of a message; so messages overtake each other."""


class Network:
    """Carries messages, and knows who can reach whom."""

    def __init__(self, agenda: Agenda, faults: Faults) -> None:
        self._agenda = agenda
        self._faults = faults
        self._cut: dict[frozenset[str], float] = {}

    def cut(self, one: str, other: str, for_s: float) -> None:
        """Parts two nodes for a while."""
        pair = frozenset((one, other))
        self._cut[pair] = max(self._cut.get(pair, 0.0), self._agenda.now + for_s)

    def reaches(self, one: str, other: str) -> bool:
        """Whether they can reach each other now."""
        return self._cut.get(frozenset((one, other)), 0.0) <= self._agenda.now

    def send(self, one: str, other: str, note: str, deliver: Callable[[], None]) -> None:
        """One message, which may be late, lost, or there twice."""
        if not self._faults.happens("loss"):
            self.call(one, other, note, deliver)
            if self._faults.happens("repeat"):
                self.call(one, other, note + " again", deliver)

    def call(self, one: str, other: str, note: str, deliver: Callable[[], None]) -> None:
        """One message on a stream: it is late, but there, if the two are not parted then."""

        def arrive() -> None:
            if self.reaches(one, other):
                deliver()

        self._agenda.soon(DELAY_S, f"{one} -> {other}: {note}", arrive)
