"""Who may get the next room, as a policy sees them: one Candidate each, and arrays over all, so that a choice among a
thousand does not touch each of them in Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from tandem.core.affinity import worker_hash
from tandem.core.ids import WorkerLife


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that may get the next room."""

    life: WorkerLife
    in_flight: int
    """Rooms of this gateway that run on it, or wait there."""
    max_running: int
    """Sequences that it runs at the same time, at least 1."""

    @property
    def load(self) -> float:
        """Rooms per place; more than 1 if some wait."""
        return self.in_flight / self.max_running


class Candidates(Sequence[Candidate]):
    """Candidates in order of life."""

    def __init__(
        self,
        lives: Sequence[WorkerLife],
        in_flight: NDArray[np.int64],
        places: NDArray[np.int64],
        hashes: NDArray[np.uint64],
    ) -> None:
        """All of one length. in_flight, places: as in Candidate. hashes: see tandem.core.affinity.worker_hash."""
        self.lives = lives
        self.in_flight = in_flight
        self.places = places
        self.hashes = hashes

    @classmethod
    def of(cls, candidates: Iterable[Candidate]) -> Candidates:
        """From candidates in any order."""
        ordered = sorted(candidates, key=lambda candidate: candidate.life)
        return cls(
            [one.life for one in ordered],
            np.array([one.in_flight for one in ordered], np.int64),
            np.array([one.max_running for one in ordered], np.int64),
            np.array([worker_hash(one.life.worker_id) for one in ordered], np.uint64),
        )

    def __len__(self) -> int:
        return len(self.lives)

    @overload
    def __getitem__(self, place: int) -> Candidate: ...
    @overload
    def __getitem__(self, place: slice) -> Candidates: ...
    def __getitem__(self, place: int | slice) -> Candidate | Candidates:
        if isinstance(place, slice):
            return self.at(np.arange(len(self))[place])
        return Candidate(self.lives[place], int(self.in_flight[place]), int(self.places[place]))

    def at(self, places: NDArray[np.intp]) -> Candidates:
        """Some of them. places: rising."""
        if len(places) == len(self):
            return self
        lives = [self.lives[place] for place in places]
        return Candidates(lives, self.in_flight[places], self.places[places], self.hashes[places])

    def least_loaded(self) -> NDArray[np.intp]:
        """Places of those that are loaded the least."""
        loads = self.in_flight / self.places
        return np.flatnonzero(loads == loads.min())

    def below(self, cap: float) -> NDArray[np.intp]:
        """Places of those that one more room would not take over `cap` times the mean load, that room included."""
        return np.flatnonzero(self.in_flight < np.ceil(self._rooms(cap) * self.places / int(self.places.sum())))

    def is_below(self, place: int, cap: float) -> bool:
        """Whether one of them is."""
        allowed = self._rooms(cap) * int(self.places[place]) / int(self.places.sum())
        return int(self.in_flight[place]) < math.ceil(allowed)

    def _rooms(self, cap: float) -> float:
        """As many as all of them together may have."""
        return cap * (1 + int(self.in_flight.sum()))
