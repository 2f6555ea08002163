"""Who may get the next room, as a policy sees them: one Candidate each, and arrays over all, so that a choice among a
thousand does not touch each of them in Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from tandem.core.affinity import Homes, worker_hash
from tandem.core.ids import WorkerLife
from tandem.core.kv_index import KvMatch


class Candidate(NamedTuple):
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
        self._each: list[int] = [int(rooms) for rooms in in_flight]
        """The same as in_flight: one number of a list is read sooner than one of an array."""
        self._places: list[int] = places.tolist()
        self.hashes = hashes
        self.loads: NDArray[np.float64] = self.in_flight / places
        """Of each, rooms per place."""
        self._rooms: int = sum(self._each)
        self._all_places: int = sum(self._places)
        self._alike = len(set(self._places)) == 1
        """Whether all have as many places."""
        self._matched: tuple[WorkerLife | None, ...] = ()
        self._by_slot = np.empty(0, np.intp)
        """The place of each of the lives that were matched last, or -1."""

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
        return Candidate(self.lives[place], self._each[place], self._places[place])

    def note_rooms(self, life: WorkerLife, rooms: int) -> None:
        """So many rooms run on a worker now; nothing happens if it is not in here."""
        place = self._place.get(life)
        if place is not None:
            self._rooms += rooms - self._each[place]
            self._each[place] = self.in_flight[place] = rooms
            self.loads[place] = rooms / self._places[place]

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
        found: NDArray[np.intp] = (self.in_flight < self._allowed(self.places, cap)).nonzero()[0]
        return found

    def below_of(self, some: NDArray[np.intp], cap: float) -> NDArray[np.intp]:
        """Those of some that are. some: places."""
        return some[self.in_flight[some] < self._allowed(self.places[some], cap)]

    def is_below(self, place: int, cap: float) -> bool:
        """Whether one of them is."""
        return self._each[place] < math.ceil(cap * (1 + self._rooms) * self._places[place] / self._all_places)

    def _allowed(self, places: NDArray[np.int64], cap: float) -> NDArray[np.float64] | int:
        rooms = cap * (1 + self._rooms)
        if self._alike:
            return math.ceil(rooms * self._places[0] / self._all_places)
        allowed: NDArray[np.float64] = np.ceil(rooms * places / self._all_places)
        return allowed

    def holders(self, match: KvMatch) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """Pages, and places of those that hold as many, rising; most pages first. Who holds none is not in it."""
        if self._matched is not match.lives:
            places = (-1 if life is None else self._place.get(life, -1) for life in match.lives)
            self._matched, self._by_slot = match.lives, np.fromiter(places, np.intp, len(match.lives))
        return match.levels(self._by_slot)

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
