"""Puts a snapshot together from all that the gateway knows; what it shows is made by pure functions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Final, Protocol

from tandem.core.clock import Clock
from tandem.core.cluster import ClusterView
from tandem.core.ids import WorkerId
from tandem.gateway.dashboard.links import LinkRow, Moment, link_rows, moment, worker_rates
from tandem.gateway.dashboard.recorder import Recorder, SeenError
from tandem.gateway.dashboard.ring import Bucket, Series, series
from tandem.gateway.dashboard.rooms import RoomsSeen, rooms_seen, rooms_together
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
    silent: int
    """Processes of this gateway that did not answer: what they have seen is missing."""


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


@dataclass(frozen=True, slots=True)
class Part:
    """What one process of a gateway knows alone, at one moment. The others know the rest as well."""

    missing: str
    """See GatewaySeen."""
    bootstrap: bool
    uptime_s: int
    sequences: int
    max_sequences: int
    in_flight: dict[str, int]
    """Rooms of this process by worker."""
    rooms: RoomsSeen
    buckets: list[Bucket]
    errors: list[SeenError]
    """The newest first."""
    traces: list[ShownTrace]
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


class Board:
    """Makes snapshots, each from the moment and from the few seconds before it that it has looked at."""

    def __init__(self, sources: Sources) -> None:
        self._from = sources
        self._started = sources.clock.monotonic()
        self._moments: deque[Moment] = deque()

    def part(self) -> Part:
        """What this process knows alone."""
        source, now = self._from, self._from.clock.monotonic()
        members = {name: source.pool.member_of(name) for name in source.pool.view.workers}
        return Part(
            missing=source.missing(),
            bootstrap=source.bootstrap(),
            uptime_s=int(now - self._started),
            sequences=source.places.used,
            max_sequences=source.places.most,
            in_flight={name: member[0].in_flight for name, member in members.items() if member is not None},
            rooms=rooms_seen(source.rooms.entries(), source.places.used, now),
            buckets=source.recorder.ring.last(now),
            errors=list(reversed(source.recorder.errors))[:ERRORS_SHOWN],
            traces=list(source.traces.last(TRACES_SHOWN)),
        )

    def snapshot(self, others: Sequence[Part] = (), silent: int = 0) -> Snapshot:
        """This moment. others: of the other processes of this gateway; silent: how many of them did not answer."""
        parts = [self.part(), *others]
        known, now = self._known(others), self._from.clock.monotonic()
        after = moment(known, now)
        before = self._before(after)
        errors = merge(*(part.errors for part in parts), key=lambda error: error.time_ms, reverse=True)
        traces = merge(*(part.traces for part in parts), key=lambda trace: trace.ended_ms, reverse=True)
        return Snapshot(
            time_ms=self._from.clock.wall_ms(),
            gateway=GatewaySeen(
                missing=next((part.missing for part in parts if part.missing), ""),
                bootstrap=all(part.bootstrap for part in parts),
                uptime_s=max(part.uptime_s for part in parts),
                sequences=sum(part.sequences for part in parts),
                max_sequences=sum(part.max_sequences for part in parts),
                models=self._from.pool.models(),
                silent=silent,
            ),
            workers=worker_rows(known, self._from.roster.lost(), worker_rates(before, after), now),
            links=link_rows(before, after),
            rooms=rooms_together([part.rooms for part in parts]),
            series=series((bucket for part in parts for bucket in part.buckets), now),
            errors=list(islice(errors, ERRORS_SHOWN)),
            traces=list(islice(traces, TRACES_SHOWN)),
        )

    def _before(self, after: Moment) -> Moment:
        """The oldest moment that is not too long ago; `after` itself if there is none."""
        self._moments.append(after)
        while self._moments[0].time < after.time - RATE_S:
            self._moments.popleft()
        return self._moments[0]

    def _known(self, others: Sequence[Part]) -> list[KnownWorker]:
        found = []
        for worker_id, info in self._from.pool.view.workers.items():
            member = self._from.pool.member_of(worker_id)
            if member is None:
                found.append(KnownWorker(info, False, 0, None, None))
                continue
            session, status = member
            in_flight = session.in_flight + sum(part.in_flight.get(worker_id, 0) for part in others)
            found.append(KnownWorker(info, session.up, in_flight, status.latest, status.heard_at))
        return found
