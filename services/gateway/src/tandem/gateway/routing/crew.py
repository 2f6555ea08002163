"""The Sessions of one role that can take rooms of a model, with what a choice among them needs made ready.

A crew is made anew when who is in it changes, not for each choice; how many rooms each worker has is kept up to date as
they come and go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tandem.core.affinity import worker_hash
from tandem.core.candidates import Candidates
from tandem.core.cluster import WorkerInfo
from tandem.core.ids import WorkerLife
from tandem.core.kv_index import KvMatch
from tandem.core.layout import KvLayout, mismatches
from tandem.core.page_ledger import PagePool
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

MAX_READY: Final = 4
"""Sets of candidates that a crew keeps ready."""

Among = NDArray[np.intp] | None
"""Places in a crew; None = all of it."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """What a choice begins with, for as long as the same workers are trusted."""

    among: Among
    exceptional: Sequence[Exceptional]
    everyone: Candidates
    trusted: Candidates
    """The same object, if all of them are."""
    own: tuple[Candidates, ...]
    """Those of both whose rooms have to be kept up to date."""


class Crew(Generic[_M_co]):
    """Workers in order of life. Their number and facts never change."""

    def __init__(self, workers: Iterable[_M_co]) -> None:
        self.workers: Sequence[_M_co] = sorted(workers, key=_life_of)
        self.lives = tuple(worker.life for worker in self.workers)
        self.met = False
        """Whether the health book has been told who is in it."""
        self._place = {life: place for place, life in enumerate(self.lives)}
        self._all = Candidates(
            self.lives,
            np.array([worker.in_flight for worker in self.workers], np.int64),
            np.array([worker.info.max_running for worker in self.workers], np.int64),
            np.array([worker_hash(life.worker_id) for life in self.lives], np.uint64),
        )
        self._ready: list[_Ready] = []
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

    @cached_property
    def pools(self) -> Sequence[PagePool]:
        """The KV pages of each."""
        infos = (worker.info for worker in self.workers)
        return tuple(PagePool(one.life, one.total_pages, one.layout.page_size, one.dp_size) for one in infos)

    def note_rooms(self, life: WorkerLife, rooms: int) -> None:
        """So many rooms run on a worker now; nothing happens if it is not in here."""
        if life not in self._place:
            return
        self._all.note_rooms(life, rooms)
        for ready in self._ready:
            for kept in ready.own:
                kept.note_rooms(life, rooms)

    def of(self, life: WorkerLife) -> _M_co:
        """One of them. Raises KeyError."""
        return self.workers[self._place[life]]

    @property
    def has_place(self) -> bool:
        """Whether one of them would begin with a room at once."""
        loads = self._all.loads
        return len(loads) > 0 and bool(loads[loads.argmin()] < 1)

    def most_held(self, match: KvMatch) -> int:
        """Pages that the one holds that holds most of them."""
        return next((pages for pages, _ in self._all.holders(match)), 0)

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

        only_good: none that is not trusted or to be avoided; else one of those where there are no others. What two
        calls have in common is kept as long as `among` and `exceptional` are the very same objects. To be used before
        rooms change.
        """
        ready = self._made_ready(among, exceptional)
        fresh = ready.trusted.without(avoid) if avoid else ready.trusted
        if only_good or fresh:
            return fresh
        return ready.trusted or ready.everyone

    def _made_ready(self, among: Among, exceptional: Sequence[Exceptional]) -> _Ready:
        for ready in self._ready:
            if ready.among is among and ready.exceptional is exceptional:
                return ready
        everyone, sick = self._all, []
        places = everyone.places.copy()
        for one in exceptional:
            place = self._place.get(one.life)
            if place is not None:
                places[place] = max(1, round(int(places[place]) * one.share))
                if not one.takes:
                    sick.append(one.life)
        if (places != everyone.places).any():
            everyone = Candidates(self.lives, everyone.in_flight, places, everyone.hashes)
        if among is not None:
            everyone = everyone.at(among)
        trusted = everyone.without(sick)
        own = tuple(kept for kept in {everyone, trusted} if kept is not self._all)
        made = _Ready(among, exceptional, everyone, trusted, own)
        self._ready = [made, *self._ready[: MAX_READY - 1]]
        return made


def _life_of(worker: Member) -> WorkerLife:
    return worker.life


@lru_cache(1024)
def layouts_fit(ours: KvLayout, theirs: KvLayout) -> bool:
    """Whether two workers can exchange KV."""
    return not mismatches(ours, theirs)
