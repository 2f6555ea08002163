"""Who may get the next room, as a policy sees them: one Candidate each, and arrays over all, so that a choice among a
thousand does not touch each of them in Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from tandem.core.affinity import Homes, worker_hash
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
    """Candidates in order of life, with what policies ask of them kept ready.

    Their rooms change; who they are, and how many places each has, does not.
    """

    def __init__(
        self,
        lives: Sequence[WorkerLife],
        in_flight: NDArray[np.int64],
        places: NDArray[np.int64],
        hashes: NDArray[np.uint64],
    ) -> None:
        """All of one length. in_flight, places: as in Candidate. hashes: see tandem.core.affinity.worker_hash."""
        self.lives = lives
        self.in_flight = in_flight.copy()
        self.places = places
        self.hashes = hashes
        self.loads: NDArray[np.float64] = self.in_flight / places
        """Of each, rooms per place."""
        self._shares = places.astype(np.float64)
        self._rooms = int(in_flight.sum())
        self._all_places = float(places.sum())

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

    def note_rooms(self, life: WorkerLife, rooms: int) -> None:
        """So many rooms run on a worker now; nothing happens if it is not in here."""
        place = self._place.get(life)
        if place is not None:
            self._rooms += rooms - int(self.in_flight[place])
            self.in_flight[place] = rooms
            self.loads[place] = rooms / self._shares[place]

    def at(self, places: NDArray[np.intp]) -> Candidates:
        """Some of them, with the rooms of now. places: rising."""
        if len(places) == len(self):
            return self
        lives = [self.lives[place] for place in places.tolist()]
        return Candidates(lives, self.in_flight[places], self.places[places], self.hashes[places])

    def without(self, lives: Iterable[WorkerLife]) -> Candidates:
        """All but these."""
        out = [place for life in lives if (place := self._place.get(life)) is not None]
        return self.at(np.delete(np.arange(len(self)), out)) if out else self

    def least_loaded(self) -> NDArray[np.intp]:
        """Places of those that are loaded the least."""
        return _least(self.loads)

    def least_loaded_of(self, some: NDArray[np.intp]) -> NDArray[np.intp]:
        """Places of those of some that are loaded the least. some: places, rising."""
        return some[_least(self.loads[some])]

    def below(self, cap: float) -> NDArray[np.intp]:
        """Places of those that one more room would not take over `cap` times the mean load, that room included."""
        allowed = np.ceil(cap * (1 + self._rooms) * self._shares / self._all_places)
        return (self.in_flight < allowed).nonzero()[0]

    def below_of(self, some: NDArray[np.intp], cap: float) -> NDArray[np.intp]:
        """Those of some that are. some: places."""
        allowed = np.ceil(cap * (1 + self._rooms) * self._shares[some] / self._all_places)
        return some[self.in_flight[some] < allowed]

    def is_below(self, place: int, cap: float) -> bool:
        """Whether one of them is."""
        allowed = cap * (1 + self._rooms) * float(self._shares[place]) / self._all_places
        return int(self.in_flight[place]) < math.ceil(allowed)

    @cached_property
    def homes(self) -> Homes:
        """Finds the home of a key among them."""
        return Homes(self.hashes, self.places)

    @cached_property
    def _place(self) -> dict[WorkerLife, int]:
        return {life: place for place, life in enumerate(self.lives)}


def _least(loads: NDArray[np.float64]) -> NDArray[np.intp]:
    # Methods, as numpy's functions of the same names take several times as long for so few numbers.
    least: NDArray[np.intp] = (loads == loads[loads.argmin()]).nonzero()[0]
    return least
