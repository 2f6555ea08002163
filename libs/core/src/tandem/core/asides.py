"""Workers that a gateway asks to be put aside, so that other gateways do not fill what gathers there for its request.

Pure. A worker goes by who asked it first, and tells all others to leave it alone (tandem.engine.worker.page_shares). It
is asked for requests only that one worker is enough for: such a request waits for nothing but the end of what runs
there, so that no two can wait for each other. One with more sequences than a worker holds asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tandem.core.ids import WorkerLife
from tandem.core.page_ledger import Seat

Say = Callable[[WorkerLife, bool], None]
"""Tells a worker that it is wanted, or not any more."""


class Asides:
    """Of one gateway process. A request is named by its seats."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._waiting: dict[Seat, WorkerLife] = {}
        """What is put aside for requests that wait, by their first seats."""
        self._before: dict[Seat, WorkerLife] = {}
        """The same as it was before the turns that are given now."""
        self._going: dict[Seat, WorkerLife] = {}
        """Sequences whose request has its place, and whose worker does not know of them yet."""
        self._said: dict[WorkerLife, None] = {}
        """Workers that know that they are wanted, in a fixed order."""

    def keep(self, seats: Sequence[Seat], life: WorkerLife) -> None:
        """A worker is put aside for a request."""
        self._waiting[seats[0]] = life

    def let_go(self) -> None:
        """Nothing is put aside any more, until `settle` knows better."""
        self._before |= self._waiting
        self._waiting = {}

    def hold(self, seat: Seat, life: WorkerLife) -> None:
        """A sequence that has its place waits for a worker with room: for this one, until it is `over`."""
        self._going[seat] = life
        self.settle()

    def seated(self, seats: Sequence[Seat]) -> None:
        """A request has its seats. Until it is sent, others may not have what gathered for it."""
        if seats and (life := self._before.pop(seats[0], None)) is not None:
            self._going |= dict.fromkeys(seats, life)

    def over(self, seat: Seat) -> None:
        """A sequence was sent, or will never be. Whoever waits for that worker next has it next: of this gateway too,
        after those of others."""
        life = self._going.pop(seat, None)
        if life is not None and life not in self._going.values():
            self._said.pop(life, None)
            self._say(life, False)
            self.settle()

    def settle(self) -> None:
        """All turns are given: says what has changed."""
        self._before.clear()
        if not (self._said or self._going or self._waiting):  # nearly always
            return
        wanted = dict.fromkeys((*self._going.values(), *self._waiting.values()))
        said, self._said = self._said, wanted
        for life in said:
            if life not in wanted:
                self._say(life, False)
        for life in wanted:
            if life not in said:
                self._say(life, True)
