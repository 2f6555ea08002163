"""How much room each worker's KV pages have, less what the sequences that were sent there may come to need.

Pure. A sequence has a Seat: room on one worker for its prompt and all that may follow, from before it is sent until it
has ended. What other gateways' sequences have there is what the worker says of it. Room is counted in tokens, seats in
whole pages; a worker's data parallel ranks have pages of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tandem.core.ids import WorkerLife


@dataclass(frozen=True, slots=True)
class PagePool:
    """The KV pages of one life of a worker."""

    life: WorkerLife
    pages: int
    """Of each rank."""
    page_tokens: int
    ranks: int = 1
    """Data parallel ranks, each with pages of its own."""


Places = NDArray[np.intp]
"""Of workers, in a ledger."""

_LAST: Final = 1 << 62
"""Tokens that no worker has room for."""


@dataclass(slots=True, eq=False)
class Seat:
    """Room of one sequence, on one worker at most."""

    tokens: int
    """Of its prompt, and those that it may generate."""
    worker: WorkerLife | None = None
    """Where it is; None: nowhere."""
    rank: int = 0
    """Data parallel rank there."""
    pages: int = 0
    """So many are kept for it there."""


@dataclass(slots=True)
class _Account:
    """One life of one worker."""

    place: int
    page_size: int
    total: int
    """Pages of each rank."""
    limit: int
    """Those that may be given away of each rank."""
    seats: int = 0
    given: list[int] = field(default_factory=list)
    """Pages of our seats and of what others have there, by rank."""

    @property
    def rank(self) -> int:
        """The one with most room."""
        return min(range(len(self.given)), key=self.given.__getitem__)

    @property
    def room(self) -> int:
        """Tokens of the largest sequence that fits now. Where nobody is, one may have all pages."""
        least = min(self.given)
        limit = self.limit if least else max(self.limit, self.total)
        return max(0, limit - least) * self.page_size


class PageLedger:
    """Accounts of workers, and an array over all, so that a choice among a thousand does not touch each of them."""

    def __init__(self, commit: float = 1.0) -> None:
        """commit: how often pages are given away, above 0."""
        self._commit = commit
        self._accounts: dict[WorkerLife, _Account] = {}
        self._spare: list[int] = []
        """Places of accounts that are closed."""
        self._room = np.zeros(0, np.int64)
        self._whole = np.zeros(0, np.int64)
        """Tokens of the largest sequence that fits a worker without any others."""
        self._aside = np.zeros(0, np.bool_)
        """Workers that are kept for one that waits."""
        self._any_aside = False
        self._taken = np.zeros(0, np.bool_)
        """Workers that other gateways have put aside."""
        self._taken_lives: set[WorkerLife] = set()
        self._lives: list[WorkerLife] = []
        """By place."""
        self._others: dict[WorkerLife, tuple[int, ...]] = {}
        """Pages that others have of a worker, by rank; only where they have any."""

    def places(self, pools: Iterable[PagePool]) -> Places:
        """Where these workers are, in their order; it holds until `retain` closes one."""
        return np.array([self._account(pool).place for pool in pools], np.intp)

    def retain(self, lives: Collection[WorkerLife]) -> None:
        """Closes the accounts of all others, but those that still have seats."""
        for life in [life for life, one in self._accounts.items() if not one.seats and life not in lives]:
            place = self._accounts.pop(life).place
            self._spare.append(place)
            self._room[place] = self._whole[place] = self._aside[place] = self._taken[place] = 0

    def told(self, life: WorkerLife, others: Sequence[int], *, taken: bool = False) -> bool:
        """A worker says how many pages of each rank others have; none = it says nothing any more. taken: whether one of
        them has it put aside. Whether that leaves more room than before."""
        before = self._others.pop(life, ())
        if any(others):
            self._others[life] = tuple(others)
        was_taken = life in self._taken_lives
        (self._taken_lives.add if taken else self._taken_lives.discard)(life)
        account = self._accounts.get(life)
        if account is None:
            return False
        self._taken[account.place] = taken
        room = account.room
        for rank in range(len(account.given)):
            account.given[rank] += _at(others, rank) - _at(before, rank)
        self._room[account.place] = account.room
        return account.room > room or (was_taken and not taken)

    def room_of(self, life: WorkerLife) -> int:
        """Tokens of the largest sequence that fits a worker now; 0 for one that is not known."""
        account = self._accounts.get(life)
        return 0 if account is None else account.room

    def roomy(self, places: Places, seat: Seat) -> NDArray[np.bool_]:
        """Which of these workers have room for a sequence: of those that are kept for others, none but its own."""
        fit: NDArray[np.bool_] = self._room.take(places) >= seat.tokens  # sooner than an index
        if self._any_kept:
            fit &= ~self._kept(places)
        if seat.worker is not None and seat.worker in self._accounts:
            fit |= places == self._accounts[seat.worker].place
        return fit

    def fits_all(self, places: Places, seats: Sequence[Seat]) -> bool:
        """Whether `seat_all` would seat them."""
        if len(seats) == 1:
            return bool(self.roomy(places, seats[0]).any())
        fit = self.seat_all(places, seats)
        for seat in seats if fit else ():
            self.leave(seat)
        return fit

    def seat_all(self, places: Places, seats: Sequence[Seat]) -> bool:
        """Seats all of them on the workers with most room, the largest first, or none."""
        for done, seat in enumerate(ordered := sorted(seats, key=lambda one: -one.tokens)):
            room = self._room.take(places)
            if self._any_kept:
                room[self._kept(places)] = -1
            best = int(room.argmax()) if room.size else 0
            if not room.size or room[best] < seat.tokens:
                for one in ordered[:done]:
                    self.leave(one)
                return False
            self.sit(seat, self._lives[places[best]])
        return True

    def sit(self, seat: Seat, life: WorkerLife) -> None:
        """Moves a sequence to a worker, whether it has room or not."""
        if seat.worker == life:
            return
        self.leave(seat)
        account = self._accounts.get(life)
        if account is None:
            return
        seat.worker, seat.rank = life, account.rank
        seat.pages = -(-seat.tokens // account.page_size)
        account.given[seat.rank] += seat.pages
        account.seats += 1
        self._room[account.place] = account.room

    def leave(self, seat: Seat) -> bool:
        """A sequence has ended, or looks for another worker. Whether it was anywhere."""
        if seat.worker is None:
            return False
        account = self._accounts[seat.worker]
        account.given[seat.rank] -= seat.pages
        account.seats -= 1
        self._room[account.place] = account.room
        seat.worker, seat.rank, seat.pages = None, 0, 0
        return True

    def largest(self, places: Places) -> int:
        """Tokens of the largest sequence that any of these workers could ever hold; 0 where there are none."""
        return int(self._whole[places].max()) if places.size else 0

    def largest_now(self, places: Places) -> int:
        """As `largest`, for which there is room now."""
        return int(self._room[places].max()) if places.size else 0

    def in_use(self, places: Places) -> bool:
        """Whether any of these workers has a seat of ours."""
        return any(self._accounts[self._lives[place]].seats for place in places)

    def put_aside(self, places: Places, seats: Iterable[Seat]) -> WorkerLife | None:
        """Keeps as few of these workers as may hold all of `seats`, those with most room first and those that other
        gateways keep last: nobody else is seated there until `put_back`, so that what comes free on them gathers.
        Returns the worker if one is enough."""
        left: dict[int, int] = {}
        whole = True
        for seat in sorted(seats, key=lambda one: -one.tokens):
            kept = next((place for place, tokens in left.items() if tokens >= seat.tokens), None)
            if kept is None:
                kept = self._roomiest(places, seat.tokens)
                if kept is None:
                    whole = False
                    continue
                left[kept] = int(self._whole[kept])
                self._aside[kept] = self._any_aside = True
            left[kept] -= seat.tokens
        return self._lives[next(iter(left))] if whole and len(left) == 1 else None

    def roomiest(self, places: Places, seat: Seat) -> WorkerLife | None:
        """Which of these workers may have room for a sequence soonest; None if none ever has."""
        place = self._roomiest(places, seat.tokens)
        return None if place is None else self._lives[place]

    def _roomiest(self, places: Places, tokens: int) -> int | None:
        """The one with most room, of those that we do not keep; what others keep goes last."""
        free = places[(self._whole[places] >= tokens) & ~self._aside[places]]
        if not free.size:
            return None
        return int(free[np.where(self._taken[free], self._room[free] - _LAST, self._room[free]).argmax()])

    def put_back(self) -> None:
        """Nobody is kept for anybody any more."""
        if self._any_aside:
            self._aside[:] = self._any_aside = False

    @property
    def _any_kept(self) -> bool:
        return self._any_aside or bool(self._taken_lives)

    def _kept(self, places: Places) -> NDArray[np.bool_]:
        """Which of these are kept, by us or by others."""
        return np.asarray((self._aside | self._taken).take(places))

    def _account(self, pool: PagePool) -> _Account:
        account = self._accounts.get(pool.life)
        if account is None:
            limit = int(pool.pages * self._commit)
            place = self._spare.pop() if self._spare else self._new_place(pool.life)
            self._lives[place] = pool.life
            given = [_at(self._others.get(pool.life, ()), rank) for rank in range(pool.ranks)]
            account = _Account(place, pool.page_tokens, pool.pages, limit, given=given)
            self._accounts[pool.life] = account
            self._room[place] = account.room
            self._whole[place] = account.total * account.page_size
            self._taken[place] = pool.life in self._taken_lives
        return account

    def _new_place(self, life: WorkerLife) -> int:
        self._lives.append(life)
        self._room, self._whole = (np.append(array, 0) for array in (self._room, self._whole))
        self._aside, self._taken = (np.append(array, False) for array in (self._aside, self._taken))
        return len(self._room) - 1


def _at(pages: Sequence[int], rank: int) -> int:
    return pages[rank] if rank < len(pages) else 0
