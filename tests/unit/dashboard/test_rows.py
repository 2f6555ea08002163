"""What the dashboard shows of workers, links and rooms, from what the gateway knows of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tandem.core.cluster import WorkerInfo
from tandem.core.errors import TandemError
from tandem.core.ids import Incarnation, RequestId, Role, RoomId, WorkerId, WorkerLife
from tandem.gateway.attempt import RoomPhase
from tandem.gateway.dashboard.links import Moment, link_rows, moment, worker_rates
from tandem.gateway.dashboard.rooms import OLDEST, rooms_seen
from tandem.gateway.dashboard.roster import KEPT, KEPT_S, LostWorker, Roster
from tandem.gateway.dashboard.workers import KnownWorker, Pages, worker_rows
from tandem.gateway.pool import State
from tandem.gateway.rooms import Entry, RoomFacts
from tandem.v1 import session_pb2
from tests.support.bootstrap.workers import worker
from tests.support.gateway.clock import HandClock

NOW = 50.0


def status(kv_bytes: int = 0, *links: str, **fields: object) -> session_pb2.WorkerStatus:
    """What a worker says of itself; 100 pages, of which 50 are in use."""
    pools = [
        session_pb2.PoolStatus(name="metadata", total=9, free=9),
        session_pb2.PoolStatus(name="kv", total=100, free=20, evictable=30, granted=5),
    ]
    return session_pb2.WorkerStatus(kv_bytes=kv_bytes, links=links, pools=pools, **fields)  # type: ignore[arg-type]


def known(
    worker_id: str, role: Role, said: session_pb2.WorkerStatus | None = None, *, life: int = 1, up: bool = True
) -> KnownWorker:
    """A worker in the view, heard of one second ago."""
    return KnownWorker(worker(worker_id, role, incarnation=life), up, 3, said, NOW - 1)


# ------------------------------------------------------------------ workers


def test_a_row_says_what_the_worker_said() -> None:
    said = status(running=2, waiting=4, open_rooms=6, rooms_succeeded=7, rooms_failed=8, checksum_failures=1)
    (row,) = worker_rows([known("d0", Role.DECODE, said, life=2**60)], [], {WorkerId("d0"): 5.0}, NOW)
    assert (row.id, row.role, row.state, row.in_flight, row.heard_ms) == ("d0", "decode", State.READY, 3, 1000)
    assert (row.running, row.queued, row.open_rooms) == (2, 4, 6)
    assert (row.succeeded, row.failed, row.checksum_failures) == (7, 8, 1)
    assert row.pages == Pages(total=100, free=20, cached=30, used=50, granted=5)
    assert row.incarnation == str(2**60), "a browser's numbers are too small for it"
    assert row.kv_bytes_per_s == 5.0


def test_a_worker_without_a_session_is_lost_and_its_old_status_is_not_shown() -> None:
    (row,) = worker_rows([known("d0", Role.DECODE, status(running=2), up=False)], [], {}, NOW)
    assert (row.state, row.running, row.pages) == (State.LOST, None, None)


@pytest.mark.parametrize("by_bootstrap", [True, False])
def test_draining_is_shown_whoever_says_it_first(by_bootstrap: bool) -> None:
    one = known("d0", Role.DECODE, status(draining=not by_bootstrap))
    (row,) = worker_rows([replace(one, info=replace(one.info, draining=by_bootstrap))], [], {}, NOW)
    assert row.state is State.DRAINING


def test_workers_are_in_order_and_lost_ones_among_them() -> None:
    lost = LostWorker(worker("p1", Role.PREFILL, incarnation=4), since=NOW - 7)
    rows = worker_rows(
        [known("d0", Role.DECODE), known("p0", Role.PREFILL), known("p2", Role.PREFILL)], [lost], {}, NOW
    )
    assert [row.id for row in rows] == ["p0", "p1", "p2", "d0"]
    assert (rows[1].state, rows[1].heard_ms, rows[1].incarnation) == (State.LOST, 7000, "4")


def test_a_count_between_two_steps_of_an_engine_stays_in_its_bar() -> None:
    said = session_pb2.WorkerStatus(pools=[session_pb2.PoolStatus(name="kv", total=10, free=8, evictable=4)])
    (row,) = worker_rows([known("d0", Role.DECODE, said)], [], {}, NOW)
    assert row.pages is not None
    assert row.pages.used == 0


# ------------------------------------------------------------------ roster


def info(worker_id: str, life: int = 1, **changes: object) -> WorkerInfo:
    """A decode worker."""
    return worker(worker_id, Role.DECODE, incarnation=life, **changes)


def lost_ids(roster: Roster) -> list[str]:
    """Who is lost."""
    return [one.info.worker_id for one in roster.lost()]


def test_a_worker_is_lost_until_it_is_back() -> None:
    roster = Roster(HandClock())
    roster.joined(info("d0"))
    roster.left(info("d0").life)
    assert lost_ids(roster) == ["d0"]
    roster.joined(info("d0", life=2))
    assert lost_ids(roster) == []


def test_the_end_of_an_old_life_is_not_that_of_the_new_one() -> None:
    roster = Roster(HandClock())
    roster.joined(info("d0", life=2))
    roster.left(WorkerLife(WorkerId("d0"), Incarnation(1)))
    assert lost_ids(roster) == []


def test_a_worker_that_drained_has_gone_and_is_not_lost() -> None:
    roster = Roster(HandClock())
    roster.joined(info("d0"))
    roster.joined(info("d0", draining=True))
    roster.left(info("d0").life)
    assert lost_ids(roster) == []


def test_lost_workers_are_forgotten_after_a_while_and_never_too_many() -> None:
    clock = HandClock()
    roster = Roster(clock)
    for number in range(2 * KEPT):
        roster.joined(info(f"d{number:03}"))
        roster.left(info(f"d{number:03}").life)
    assert lost_ids(roster) == [f"d{number:03}" for number in range(KEPT, 2 * KEPT)]
    clock.now_s += KEPT_S + 1
    assert lost_ids(roster) == []


# ------------------------------------------------------------------ links


def rates_of(before: list[KnownWorker], after: list[KnownWorker], seconds: float = 2.0) -> dict[WorkerId, float]:
    """Rates between two moments."""
    return worker_rates(moment(before, NOW), moment(after, NOW + seconds))


def shown(workers: list[KnownWorker], rates: dict[WorkerId, float]) -> dict[str, float | None]:
    """Rate by link."""
    return {f"{row.prefill}-{row.decode}": row.bytes_per_s for row in link_rows(moment(workers, NOW), rates)}


def test_an_only_link_has_its_workers_rate() -> None:
    before = [known("p0", Role.PREFILL, status(100, "d0=cma")), known("d0", Role.DECODE, status(100, "p0=cma"))]
    after = [known("p0", Role.PREFILL, status(900, "d0=cma")), known("d0", Role.DECODE, status(700, "p0=cma"))]
    (row,) = link_rows(moment(after, NOW), rates_of(before, after))
    assert (row.prefill, row.decode, row.provider) == ("p0", "d0", "cma")
    assert row.bytes_per_s == 300, "decode's, as it has verified them"


def test_a_link_has_the_rate_of_the_end_that_has_no_other() -> None:
    before = [
        known("p0", Role.PREFILL, status(0, "d0=tcp", "d1=tcp")),
        known("d0", Role.DECODE, status(0, "p0=tcp")),
        known("d1", Role.DECODE, status(0, "p0=tcp", "p1=tcp")),
        known("p1", Role.PREFILL, status(0, "d1=tcp")),
    ]
    after = [replace(one, status=status(400 * n, *one.status.links)) for n, one in enumerate(before, 1) if one.status]
    assert shown(after, rates_of(before, after)) == {"p0-d0": 400.0, "p0-d1": None, "p1-d1": 800.0}


def test_a_link_that_one_end_tells_of_is_there() -> None:
    workers = [known("p0", Role.PREFILL, None), known("d0", Role.DECODE, status(0, "p0=verbs"))]
    assert shown(workers, {}) == {"p0-d0": None}


@pytest.mark.parametrize(("life", "kv_bytes"), [(2, 900), (1, 50)], ids=["a new life", "a counter that went back"])
def test_counters_that_began_anew_make_no_rate(life: int, kv_bytes: int) -> None:
    before = [known("d0", Role.DECODE, status(100, "p0=cma"))]
    assert rates_of(before, [known("d0", Role.DECODE, status(kv_bytes, "p0=cma"), life=life)]) == {}


def test_there_is_no_rate_without_time_or_a_former_moment() -> None:
    one = [known("d0", Role.DECODE, status(100, "p0=cma"))]
    assert rates_of(one, one, seconds=0) == {}
    assert worker_rates(Moment(0, {}), moment(one, 1)) == {}


# ------------------------------------------------------------------ rooms


@dataclass(frozen=True)
class Running:
    """An attempt."""

    phase: RoomPhase

    def give_up(self, error: TandemError) -> bool:
        """Never."""
        raise error


def room(number: int, phase: RoomPhase, started: float) -> Entry:
    """An attempt of p0 and d0."""
    lives = [WorkerLife(WorkerId(name), Incarnation(1)) for name in ("p0", "d0")]
    facts = RoomFacts(RoomId(2**62 + number), RequestId(f"r{number}"), 1, lives[0], lives[1], NOW + 100)
    return Entry(number, facts, Running(phase), started)


def test_rooms_are_counted_by_phase_and_the_oldest_listed() -> None:
    phases = [RoomPhase.SUBMITTED] * 3 + [RoomPhase.FIRST_TOKEN] * 2 + [RoomPhase.DECODING] * 20
    seen = rooms_seen([room(n, phase, NOW - 100 + n) for n, phase in enumerate(phases)], 27, NOW)
    assert (seen.waiting, seen.prefill, seen.transfer, seen.decode) == (2, 3, 2, 20)
    assert [row.request_id for row in seen.oldest] == [f"r{n}" for n in range(OLDEST)]
    assert (seen.oldest[0].age_ms, seen.oldest[0].prefill, seen.oldest[0].decode) == (100_000, "p0", "d0")
    assert seen.oldest[0].room == str(2**62), "a browser's numbers are too small for it"
