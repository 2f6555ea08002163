"""What decode can hold, so that it is asked for no more: room on each worker, for requests that wait and for rooms.

Pure. A request gets its place when each of its sequences has a seat on some worker (tandem.core.page_ledger). Which
worker gets a sequence is still the policy's choice, among those with room for it: then its seat moves there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tandem.core.asides import Asides, Say
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.fair_queue import Ask
from tandem.core.ids import Role, WorkerLife
from tandem.core.page_ledger import PageLedger, PagePool, Places, Seat

MAX_MODELS: Final = 256
"""Models whose workers' places are kept."""


class Crew(Protocol):
    """The workers of one role that can take a room of a model now. Where they change it is another object."""

    @property
    def pools(self) -> Sequence[PagePool]:
        """Their pages, in the order of the crew."""


class Nobody:
    """A crew without workers."""

    pools: Final[tuple[PagePool, ...]] = ()


@dataclass(frozen=True, slots=True)
class _Pools:
    """Workers whose pages answers of one model live in."""

    decodes: Crew
    unified: Crew
    places: dict[Role, Places]
    all: Places
    largest: int
    """Tokens of the largest sequence that any of them could ever hold; 0 where there are none."""


def _nothing() -> None:
    """Nobody wants to know."""


class DecodeSpace:
    """One per gateway process, or simulated gateway."""

    def __init__(
        self,
        crew: Callable[[Role, str], Crew] = lambda _role, _model: Nobody(),
        commit: float = 0,
        on_freed: Callable[[], None] = _nothing,
        say_aside: Say = lambda *_: None,
    ) -> None:
        """crew: by role and model. commit: how often pages are given away; 0 = without a bound. on_freed: called when
        more may fit than before; it may not call back. say_aside: tells workers that they are put aside."""
        self._crew = crew
        self._bounded = commit > 0
        self._ledger = PageLedger(commit or 1.0)
        self._on_freed = on_freed
        self._asides = Asides(say_aside)
        self._pools: dict[str, _Pools] = {}
        self.standing: Counter[str] = Counter()
        """Sequences that have their place and wait for a worker with room, by model; kept by who lets them wait.
        Nobody gets a place for such a model."""

    # ------------------------------------------------------------ for the queue: tandem.core.fair_queue.Space

    def require_possible(self, ask: Ask) -> None:
        """Raises INVALID_ARGUMENT for a sequence that no worker's pages could hold."""
        if not self._bounded:
            return
        largest = self._of(ask.pool).largest
        if largest and ask.largest > largest:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT,
                f"The prompt and its new tokens are up to {ask.largest} tokens; the KV cache of a worker holds"
                f" {largest} at most. Ask for fewer new tokens, or shorten the prompt.",
                field="max_tokens",
            )

    def fits(self, ask: Ask) -> bool:
        """Whether there is a worker with room for each sequence now; where nobody decodes, the router says so.

        Where nothing of this gateway runs, a request of several sequences goes on with those that fit, and the others
        find their worker as these end: it may need more than all workers have together.
        """
        if not self._bounded:
            return True
        places = self._of(ask.pool).all
        if not places.size:
            return True
        if self.standing[ask.pool]:
            return False
        return self._ledger.fits_all(places, ask.seats) or (ask.places > 1 and not self._ledger.in_use(places))

    def take(self, ask: Ask) -> None:
        """A request has its place, and its sequences their seats."""
        if self._bounded:
            places = self._of(ask.pool).all
            if not self._ledger.seat_all(places, ask.seats):
                for seat in ask.seats:
                    self._ledger.seat_all(places, (seat,))
            self._asides.seated(ask.seats)

    def give(self, ask: Ask) -> None:
        """It has ended."""
        for seat in ask.seats:
            self._asides.over(seat)
        if sum(self._ledger.leave(seat) for seat in ask.seats):
            self._on_freed()

    def put_aside(self, ask: Ask) -> None:
        """Keeps as many workers for a request as it needs, those with most room."""
        if self._bounded and not self.standing[ask.pool]:
            life = self._ledger.put_aside(self._of(ask.pool).all, ask.seats)
            if life is not None:
                self._asides.keep(ask.seats, life)

    def put_back(self) -> None:
        """Ends that for all requests; `settle` follows."""
        self._ledger.put_back()
        self._asides.let_go()

    def settle(self) -> None:
        """All that is to be put aside is: tells the workers."""
        self._asides.settle()

    # ------------------------------------------------------------ for who chooses workers

    def roomy(self, model: str, role: Role, seat: Seat) -> NDArray[np.bool_] | None:
        """Which workers of a role's crew have room for a sequence; None: all."""
        if not self._bounded:
            return None
        fit = self._ledger.roomy(self._of(model).places[role], seat)
        return None if fit.all() else fit

    def sit(self, seat: Seat, life: WorkerLife) -> None:
        """A sequence goes to a worker."""
        if self._bounded and seat.worker != life:
            moved = seat.worker is not None
            self._ledger.sit(seat, life)
            if moved:
                self._on_freed()

    def sent(self, seat: Seat) -> None:
        """Its worker knows of a sequence."""
        self._asides.over(seat)

    def leave(self, seat: Seat) -> None:
        """A sequence has ended."""
        self._asides.over(seat)
        if self._ledger.leave(seat):
            self._on_freed()

    def full(self, model: str, seat: Seat) -> bool:
        """Whether there are workers, and none has room for a sequence."""
        if not self._bounded:
            return False
        places = self._of(model).all
        return places.size > 0 and not self._ledger.roomy(places, seat).any()

    def stand(self, model: str, seat: Seat) -> None:
        """A sequence has its place and waits for a worker with room: before those of other gateways too."""
        if (life := self._ledger.roomiest(self._of(model).all, seat)) is not None:
            self._asides.hold(seat, life)

    # ------------------------------------------------------------ what is told of workers

    def changed(self) -> None:
        """Workers have come or gone."""
        pools = [self._of(model) for model in tuple(self._pools)]
        crews = [crew for one in pools for crew in (one.decodes, one.unified)]
        self._ledger.retain({pool.life for crew in crews for pool in crew.pools})
        self._pools.clear()
        self._on_freed()

    def told(self, life: WorkerLife, others: Sequence[int], *, taken: bool = False) -> None:
        """A worker says how many pages of each rank other gateways have; none = it says nothing any more. taken:
        whether one of them has it put aside."""
        if self._ledger.told(life, others, taken=taken):
            self._on_freed()

    def largest_now(self, models: Iterable[str]) -> dict[str, int]:
        """Tokens of the largest sequence that has room now, by model; nothing where there is no bound."""
        return {model: self._ledger.largest_now(self._of(model).all) for model in models if self._bounded}

    def room_of(self, life: WorkerLife) -> int:
        """Tokens of the largest sequence that fits a worker now."""
        return self._ledger.room_of(life)

    def _of(self, model: str) -> _Pools:
        decodes, unified = self._crew(Role.DECODE, model), self._crew(Role.UNIFIED, model)
        known = self._pools.get(model)
        if known is None or known.decodes is not decodes or known.unified is not unified:
            places = {
                Role.DECODE: self._ledger.places(decodes.pools),
                Role.UNIFIED: self._ledger.places(unified.pools),
            }
            both = np.concatenate(list(places.values()))
            known = _Pools(decodes, unified, places, both, self._ledger.largest(both))
            if len(self._pools) >= MAX_MODELS:
                self._pools.clear()
            self._pools[model] = known
        return known
