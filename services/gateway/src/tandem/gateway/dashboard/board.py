"""Puts a snapshot together from all that the gateway knows; what it shows is made by pure functions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import orjson

from tandem.core.clock import Clock
from tandem.core.cluster import ClusterView
from tandem.core.ids import WorkerId
from tandem.gateway.dashboard.links import LinkRow, Moment, link_rows, moment, worker_rates
from tandem.gateway.dashboard.recorder import Recorder, SeenError
from tandem.gateway.dashboard.ring import Series, series
from tandem.gateway.dashboard.rooms import RoomsSeen, rooms_seen
from tandem.gateway.dashboard.roster import Roster
from tandem.gateway.dashboard.traces import ShownTrace, TraceSource
from tandem.gateway.dashboard.workers import KnownWorker, WorkerRow, worker_rows
from tandem.gateway.routing.rooms import RoomBook
from tandem.gateway.routing.sessions import Session, StatusFollower

ERRORS_SHOWN: Final = 12
TRACES_SHOWN: Final = 5
RATE_S: Final = 5.5
"""Rates are means over about so many seconds."""


@dataclass(frozen=True, slots=True)
class GatewaySeen:
    """The gateway itself."""

    missing: str
    """What keeps it from being ready; empty if nothing does."""
    bootstrap: bool
    """Whether bootstrap confirms the view of the cluster."""
    uptime_s: int
    sequences: int
    max_sequences: int
    models: tuple[str, ...]
    process: str
    """Which process of several this is about; empty where there is one."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment, as docs/dashboard.md documents it."""

    time_ms: int
    """Since 1970."""
    gateway: GatewaySeen
    workers: list[WorkerRow]
    links: list[LinkRow]
    rooms: RoomsSeen
    series: Series
    errors: list[SeenError]
    """The newest first."""
    traces: Sequence[ShownTrace]
    """The newest first."""


class Places(Protocol):
    """Places for sequences; see tandem.gateway.admission.waiting_room.WaitingRoom."""

    @property
    def used(self) -> int:
        """Those that are taken."""

    @property
    def most(self) -> int:
        """All."""


class Pool(Protocol):
    """Where workers are found; see tandem.gateway.routing.pool.SessionPool."""

    @property
    def view(self) -> ClusterView:
        """The cluster as last heard of."""

    def member_of(self, worker_id: WorkerId) -> tuple[Session, StatusFollower] | None:
        """What is held of a worker."""

    def models(self) -> tuple[str, ...]:
        """Every model that some worker serves."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What a board reads. It changes nothing of it."""

    clock: Clock
    pool: Pool
    rooms: RoomBook
    recorder: Recorder
    roster: Roster
    traces: TraceSource
    missing: Callable[[], str]
    """Empty if the gateway is ready, else what is missing."""
    bootstrap: Callable[[], bool]
    """Whether bootstrap confirms the view."""
    places: Places
    process: str = ""
    """See GatewaySeen."""


class Board:
    """Makes snapshots, each from the moment and from the few seconds before it that it has looked at."""

    def __init__(self, sources: Sources) -> None:
        self._from = sources
        self._started = sources.clock.monotonic()
        self._moments: deque[Moment] = deque()

    def snapshot(self) -> Snapshot:
        """This moment."""
        known, now = self._known(), self._from.clock.monotonic()
        after = moment(known, now)
        before = self._before(after)
        rates = worker_rates(before, after)
        return Snapshot(
            time_ms=self._from.clock.wall_ms(),
            gateway=GatewaySeen(
                missing=self._from.missing(),
                bootstrap=self._from.bootstrap(),
                uptime_s=int(now - self._started),
                sequences=self._from.places.used,
                max_sequences=self._from.places.most,
                models=self._from.pool.models(),
                process=self._from.process,
            ),
            workers=worker_rows(known, self._from.roster.lost(), rates, now),
            links=link_rows(before, after),
            rooms=rooms_seen(self._from.rooms.entries(), self._from.places.used, now),
            series=series(self._from.recorder.ring.last(now), now),
            errors=list(reversed(self._from.recorder.errors))[:ERRORS_SHOWN],
            traces=self._from.traces.last(TRACES_SHOWN),
        )

    def encoded(self) -> bytes:
        """This moment as JSON."""
        return orjson.dumps(self.snapshot())

    def _before(self, after: Moment) -> Moment:
        """The oldest moment that is not too long ago; `after` itself if there is none."""
        self._moments.append(after)
        while self._moments[0].time < after.time - RATE_S:
            self._moments.popleft()
        return self._moments[0]

    def _known(self) -> list[KnownWorker]:
        found = []
        for worker_id, info in self._from.pool.view.workers.items():
            member = self._from.pool.member_of(worker_id)
            if member is None:
                found.append(KnownWorker(info, False, 0, None, None))
                continue
            session, status = member
            found.append(KnownWorker(info, session.up, session.in_flight, status.latest, status.heard_at))
        return found
