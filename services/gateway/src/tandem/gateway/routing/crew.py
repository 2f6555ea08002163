"""The Sessions of one role that can take rooms of a model, with what a choice among them needs made ready.

A crew is made anew when who is in it changes, not for each choice; how many rooms each worker has is kept up to date as
they come and go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tandem.core.affinity import worker_hash
from tandem.core.candidates import Candidates
from tandem.core.cluster import WorkerInfo
from tandem.core.ids import WorkerLife
from tandem.core.layout import KvLayout, mismatches
from tandem.gateway.routing.health import Exceptional


class Member(Protocol):
    """A worker in a crew."""

    info: WorkerInfo

    @property
    def life(self) -> WorkerLife:
        """Who it is."""

    @property
    def in_flight(self) -> int:
        """Rooms of ours that run there."""


_M_co = TypeVar("_M_co", bound=Member, covariant=True)

Among = NDArray[np.intp] | None
"""Places in a crew; None = all of it."""


class Crew(Generic[_M_co]):
    """Workers in order of life. Their number and facts never change."""

    def __init__(self, workers: Iterable[_M_co]) -> None:
        self.workers: Sequence[_M_co] = sorted(workers, key=_life_of)
        self.lives = tuple(worker.life for worker in self.workers)
        self.met = False
        """Whether the health book has been told who is in it."""
        self._place = {life: place for place, life in enumerate(self.lives)}
        self._in_flight = np.array([worker.in_flight for worker in self.workers], np.int64)
        self._places = np.array([worker.info.max_running for worker in self.workers], np.int64)
        self._hashes = np.array([worker_hash(life.worker_id) for life in self.lives], np.uint64)
        layouts = dict.fromkeys(worker.info.layout for worker in self.workers)
        self.layouts: Sequence[KvLayout] = tuple(layouts)
        """Those that its workers have, each once; mostly there is one."""
        kinds = {layout: kind for kind, layout in enumerate(layouts)}
        self._others: Sequence[KvLayout] | None = None
        self._fitting: Among = None
        """The last answer of `fitting`, and to what."""
        self._kinds = np.array([kinds[worker.info.layout] for worker in self.workers], np.int64)

    def __len__(self) -> int:
        return len(self.workers)

    def note_rooms(self, life: WorkerLife, rooms: int) -> None:
        """So many rooms run on a worker now; nothing happens if it is not in here."""
        place = self._place.get(life)
        if place is not None:
            self._in_flight[place] = rooms

    def of(self, life: WorkerLife) -> _M_co:
        """One of them. Raises KeyError."""
        return self.workers[self._place[life]]

    @property
    def has_place(self) -> bool:
        """Whether one of them would begin with a room at once."""
        return len(self) > 0 and bool((self._in_flight < self._places).any())

    def fitting(self, others: Sequence[KvLayout]) -> NDArray[np.intp] | None:
        """Places of those whose layout fits one of others'; None = of all."""
        if self._others is not others:
            fit = [any(layouts_fit(ours, theirs) for theirs in others) for ours in self.layouts]
            self._fitting = None if all(fit) else np.flatnonzero(np.array(fit, np.bool_)[self._kinds])
            self._others = others
        return self._fitting

    def candidates(
        self,
        among: NDArray[np.intp] | None,
        exceptional: Sequence[Exceptional],
        avoid: Collection[WorkerLife],
        *,
        only_good: bool,
    ) -> Candidates:
        """Who may be chosen. among: their places; None = all. exceptional: who is not trusted, or only in part.

        only_good: none that is not trusted or to be avoided; else one of those where there are no others.
        """
        places, sick, avoided = self._places, [], []
        for one in exceptional:
            place = self._place.get(one.life)
            if place is not None:
                if places is self._places:
                    places = places.copy()
                places[place] = max(1, round(int(places[place]) * one.share))
                if not one.takes:
                    sick.append(place)
        avoided = [self._place[life] for life in avoid if life in self._place]
        everyone = Candidates(self.lives, self._in_flight, places, self._hashes)
        if among is None and not sick and not avoided:
            return everyone
        all_of_them = np.arange(len(self)) if among is None else among
        healthy = all_of_them[~np.isin(all_of_them, sick)]
        fresh = healthy[~np.isin(healthy, avoided)]
        if only_good or fresh.size:
            return everyone.at(fresh)
        return everyone.at(healthy if healthy.size else all_of_them)


def _life_of(worker: Member) -> WorkerLife:
    return worker.life


@lru_cache(1024)
def layouts_fit(ours: KvLayout, theirs: KvLayout) -> bool:
    """Whether two workers can exchange KV."""
    return not mismatches(ours, theirs)
