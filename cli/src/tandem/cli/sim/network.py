"""The network: delays, losses, repeats and partitions between the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tandem.cli.sim.agenda import Agenda

DELAY_S = 0.3
"""Longest way of a message; so messages overtake each other."""


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad a run's world is: probabilities per message, chunk or room, and events per virtual minute."""

    loss: float = 0.0
    repeat: float = 0.0
    corrupt: float = 0.0
    """A page of a chunk arrives damaged."""
    lane_failure: float = 0.0
    """A chunk breaks off, what has landed of it stays."""
    stray_write: float = 0.0
    """A chunk is told to go outside its grant."""
    hand_in_failure: float = 0.0
    """Verified KV does not reach the engine's own memory."""
    cancel: float = 0.0
    """A client leaves."""
    crashes: float = 0.0
    stops: float = 0.0
    """A worker is stopped for a while and goes on (SIGSTOP)."""
    partitions: float = 0.0
    link_losses: float = 0.0
    bootstrap_restarts: float = 0.0
    gateway_restarts: float = 0.0


class Network:
    """Carries messages, and knows who can reach whom."""

    def __init__(self, agenda: Agenda, weather: Weather) -> None:
        self._agenda = agenda
        self._weather = weather
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
        if not self._agenda.fault("loss", self._weather.loss):
            self._carry(one, other, note, deliver)
            if self._agenda.fault("repeat", self._weather.repeat):
                self._carry(one, other, note + " again", deliver)

    def call(self, one: str, other: str, note: str, deliver: Callable[[], None]) -> None:
        """One message on a stream: it is late, but there, if the two are not parted then."""
        self._carry(one, other, note, deliver)

    def _carry(self, one: str, other: str, note: str, deliver: Callable[[], None]) -> None:
        def arrive() -> None:
            if self.reaches(one, other):
                deliver()

        self._agenda.soon(DELAY_S, f"{one} -> {other}: {note}", arrive)
