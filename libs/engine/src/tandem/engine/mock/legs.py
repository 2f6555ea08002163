"""One leg per room: what the engine holds of it, from submit until its one Finish.

    OPENING --tickets are open--> CONNECTING --every rank is linked--> QUEUED --pages and a row are free--> MOVING
    MOVING --landed--> RUNNING (decode only) --> ENDED          any of them --why--> (every rank quiet) --> ENDED

A leg's pages go back only when every rank's room has ended: no byte can land on them, none is read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Final, Generic, TypeVar

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RoomId
from tandem.core.room.events import Phase, Why
from tandem.engine.mock.leases import Lease, Leases
from tandem.engine.mock.rank_port import RoomPort
from tandem.engine.port import Delta, Finish, FinishKind, Job, Sink

Port = TypeVar("Port", bound=RoomPort)

_OVER: Final = frozenset({Phase.SUCCESS, Phase.FAILED})


class RoomGroup(Generic[Port]):
    """One room on all ranks."""

    def __init__(self, handles: Iterable[Port]) -> None:
        self._handles = tuple(handles)

    def __iter__(self) -> Iterator[Port]:
        return iter(self._handles)

    @property
    def ready(self) -> bool:
        """Every rank may begin."""
        return all(handle.phase is Phase.WAITING for handle in self._handles)

    @property
    def landed(self) -> bool:
        """Every rank has succeeded."""
        return all(handle.phase is Phase.SUCCESS for handle in self._handles)

    @property
    def quiet(self) -> bool:
        """Nothing moves on any rank any more."""
        return all(handle.phase in _OVER for handle in self._handles)

    @property
    def failure(self) -> Why | None:
        """Why a rank failed, if one did."""
        for handle in self._handles:
            if handle.why is not None:
                return handle.why
            if handle.phase is Phase.FAILED:
                return Why(ErrorReason.INTERNAL, "a rank failed and did not say why")
        return None

    def watch(self, on_change: Callable[[], None]) -> None:
        """Calls back on each change of any rank."""
        for handle in self._handles:
            handle.on_change = on_change

    def abort(self, why: Why) -> None:
        """Gives the room up on every rank that has not ended."""
        for handle in self._handles:
            if handle.phase not in _OVER:
                handle.abort(why.reason, why.message, by_peer=why.by_peer)

    def clear(self) -> None:
        """Lets the ranks forget the room. From then on it is quiet."""
        handles, self._handles = self._handles, ()
        for handle in handles:
            handle.on_change = None
            handle.clear()


class Stage(Enum):
    """Where a leg stands."""

    OPENING = "opening"
    CONNECTING = "connecting"
    QUEUED = "queued"
    MOVING = "moving"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Leg(Generic[Port]):
    """One leg of one room."""

    job: Job
    sink: Sink
    stage: Stage = Stage.OPENING
    rooms: RoomGroup[Port] | None = None
    lease: Lease | None = None
    why: Why | None = None
    """Set once it is failing."""
    emitted: int = 0
    """Tokens that went to the sink."""
    computed: Sequence[int] = ()
    """Tokens whose KV its pages hold, for an engine that keeps them beyond the leg's good end."""
    timer: asyncio.TimerHandle | None = None

    @property
    def room(self) -> RoomId:
        """Its room."""
        return self.job.room

    @property
    def alive(self) -> bool:
        """It has neither ended nor begun to fail."""
        return self.why is None and self.stage is not Stage.ENDED

    @property
    def handles(self) -> RoomGroup[Port]:
        """Its rooms, once they are open."""
        assert self.rooms is not None
        return self.rooms


class LegBook(Generic[Port]):
    """Every leg of the engine that has not ended. Each gets exactly one Finish."""

    def __init__(
        self,
        leases: Leases,
        max_waiting: int,
        changed: Callable[[Leg[Port]], None],
        gone: Callable[[Leg[Port]], None],
    ) -> None:
        """changed: a live leg's rooms moved on. gone: a leg has ended, and what it held is free."""
        self.legs: dict[RoomId, Leg[Port]] = {}
        self.leases = leases
        self.succeeded = 0
        self.failed = 0
        self.empty = asyncio.Event()
        self.empty.set()
        self._max_waiting = max_waiting
        self._changed = changed
        self._gone = gone

    def __len__(self) -> int:
        return len(self.legs)

    def add(self, job: Job, sink: Sink) -> Leg[Port]:
        """Begins a leg. Raises TandemError(ROOM_EXISTS) or, with too many that wait, OVERLOADED."""
        if job.room in self.legs:
            raise TandemError(ErrorReason.ROOM_EXISTS, f"room {job.room} is open already")
        waiting = len(self.legs) - self.leases.count
        if waiting >= self._max_waiting:
            raise TandemError(ErrorReason.OVERLOADED, f"{waiting} rooms wait already")
        leg: Leg[Port] = Leg(job, sink)
        self.legs[job.room] = leg
        self.empty.clear()
        late = Why(ErrorReason.DEADLINE_EXCEEDED, "the room had not ended at its deadline")
        delay_s = max(0.0, job.deadline - time.monotonic())
        leg.timer = asyncio.get_running_loop().call_later(delay_s, self.fail, leg, late)
        return leg

    def opened(self, leg: Leg[Port], rooms: RoomGroup[Port]) -> None:
        """Its tickets are open on these ranks. A leg that began to fail meanwhile fails now."""
        if leg.stage is Stage.ENDED:  # the engine closed while the tickets were on their way
            rooms.clear()
            return
        leg.rooms = rooms
        leg.stage = Stage.CONNECTING
        rooms.watch(partial(self._look, leg))
        if leg.why is not None:
            rooms.abort(leg.why)
        self._look(leg)

    def refused(self, leg: Leg[Port], rooms: RoomGroup[Port], why: Why) -> None:
        """Its tickets could not be opened on all ranks: it ends without a Finish, once the others are quiet."""
        leg.sink = _nobody
        leg.why = why
        self.opened(leg, rooms)

    def fail(self, leg: Leg[Port], why: Why) -> bool:
        """Begins to end a leg badly; its Finish comes when every rank is quiet. False if it has ended."""
        if leg.stage is Stage.ENDED:
            return False
        if leg.why is None:
            leg.why = why
            if leg.rooms is not None:
                leg.rooms.abort(why)
                self._look(leg)
        return True

    def end(self, leg: Leg[Port], last: Delta) -> None:
        """Ends a leg: what it holds is freed, then `last`, which has its Finish, goes to its sink."""
        leg.stage = Stage.ENDED
        if leg.timer is not None:
            leg.timer.cancel()
        del self.legs[leg.room]
        if leg.rooms is not None:
            leg.rooms.clear()
        if leg.lease is not None:
            self.leases.give(leg.lease, leg.computed if leg.why is None else ())
            leg.lease = None
        if leg.why is None:
            self.succeeded += 1
        else:
            self.failed += 1
        if not self.legs:
            self.empty.set()
        self._gone(leg)
        leg.sink(last)

    def end_badly(self, leg: Leg[Port]) -> None:
        """Ends a leg that fails. Only once nothing of it moves any more."""
        if leg.stage is Stage.ENDED:
            return
        finish = Finish(FinishKind.FAILED, len(leg.job.input_ids), leg.emitted, why=leg.why)
        self.end(leg, Delta(leg.room, finish=finish))

    def _look(self, leg: Leg[Port]) -> None:
        # Aborting a rank may call back at once, so nothing is taken for granted after it.
        if leg.stage is Stage.ENDED or leg.rooms is None:
            return
        if leg.why is None and (found := leg.rooms.failure) is not None:
            leg.why = found
            leg.rooms.abort(found)
        if leg.why is None:
            self._changed(leg)
        elif leg.rooms.quiet:
            self.end_badly(leg)


def _nobody(delta: Delta) -> None:
    """The sink of a leg whose submit raised."""
