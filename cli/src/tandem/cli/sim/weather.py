"""Kinds of fault: how likely each is in a run, whether it happens now, and how often it has."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Final


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


FAULTS: Final = tuple(Weather.__dataclass_fields__)
"""Kinds of fault."""


class Faults:
    """The faults of one run."""

    def __init__(self, weather: Weather, dice: random.Random) -> None:
        self._weather = weather
        self._dice = dice
        self.counts: Counter[str] = Counter()
        """How often each kind happened."""

    def rate(self, kind: str) -> float:
        """How bad this kind is: see Weather."""
        rate: float = getattr(self._weather, kind)
        return rate

    def happens(self, kind: str) -> bool:
        """Whether a fault of this kind happens now; it is counted."""
        happens = self._dice.random() < self.rate(kind)
        self.counts[kind] += happens
        return happens
