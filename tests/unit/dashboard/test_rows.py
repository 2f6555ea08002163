"""What the dashboard shows of workers, links and rooms, from what the gateway knows of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tandem.core.cluster import WorkerInfo
from tandem.core.errors import TandemError
from tandem.core.ids import PAIR, Incarnation, RequestId, Role, RoomId, WorkerId, WorkerLife
from tandem.gateway.dashboard.links import Moment, link_rows, moment, worker_rates
from tandem.gateway.dashboard.rooms import OLDEST, rooms_seen
from tandem.gateway.dashboard.roster import KEPT, KEPT_S, LostWorker, Roster
from tandem.gateway.dashboard.workers import KnownWorker, Pages, worker_rows
from tandem.gateway.routing.attempt import RoomPhase
from tandem.gateway.routing.pool import State
from tandem.gateway.routing.rooms import Entry, RoomFacts
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


def moved(**by_peer: int) -> session_pb2.WorkerStatus:
    """A worker with a link over tcp to each peer, and the bytes that it has moved over it."""
    traffic = [session_pb2.PeerTraffic(peer=peer, provider="tcp", bytes=size) for peer, size in by_peer.items()]
    return status(0, *(f"{peer}=tcp" for peer in by_peer), traffic=traffic)


def link_rates(before: list[KnownWorker], after: list[KnownWorker], seconds: float = 2.0) -> dict[str, float | None]:
    """Rate by link, between two moments."""
    rows = link_rows(moment(before, NOW), moment(after, NOW + seconds))
    return {f"{row.prefill}-{row.decode}": row.bytes_per_s for row in rows}


def test_each_link_has_a_rate_of_its_own() -> None:
    def workers(*moved_over: int) -> list[KnownWorker]:
        p0d0, p0d1, p1d0, p1d1 = moved_over
        return [
            known("p0", Role.PREFILL, moved(d0=p0d0, d1=p0d1)),
            known("p1", Role.PREFILL, moved(d0=p1d0, d1=p1d1)),
            known("d0", Role.DECODE, moved(p0=p0d0, p1=p1d0)),
            known("d1", Role.DECODE, moved(p0=p0d1, p1=p1d1)),
        ]

    rates = link_rates(workers(10, 20, 30, 40), workers(12, 24, 30, 48))
    assert rates == {"p0-d0": 1.0, "p0-d1": 2.0, "p1-d0": 0.0, "p1-d1": 4.0}


def test_decode_is_believed_and_prefill_where_decode_says_nothing() -> None:
    before = [known("p0", Role.PREFILL, moved(d0=0, d1=0)), known("d0", Role.DECODE, moved(p0=0))]
    after = [known("p0", Role.PREFILL, moved(d0=800, d1=600)), known("d0", Role.DECODE, moved(p0=400))]
    assert link_rates(before, after) == {"p0-d0": 200.0, "p0-d1": 300.0}


def test_bytes_of_all_providers_of_a_peer_are_one_links() -> None:
    parts = [session_pb2.PeerTraffic(peer="p0", provider=name, bytes=size) for name, size in (("cma", 5), ("tcp", 7))]
    after = [known("d0", Role.DECODE, status(0, "p0=tcp", traffic=parts))]
    (row,) = link_rows(moment([known("d0", Role.DECODE, moved())], NOW), moment(after, NOW + 2))
    assert (row.prefill, row.decode, row.provider, row.bytes_per_s) == ("p0", "d0", "tcp", 6.0)


@pytest.mark.parametrize("said", [None, status(0, "d0=tcp")], ids=["silent", "without bytes by peer"])
def test_a_link_that_one_end_tells_of_is_there(said: session_pb2.WorkerStatus | None) -> None:
    workers = [known("p0", Role.PREFILL, said), known("d0", Role.DECODE, status(0, "p0=tcp"))]
    assert link_rates(workers, workers) == {"p0-d0": None}


@pytest.mark.parametrize(("life", "size"), [(2, 900), (1, 50)], ids=["a new life", "a counter that went back"])
def test_bytes_of_a_link_that_began_anew_make_no_rate(life: int, size: int) -> None:
    before = [known("d0", Role.DECODE, moved(p0=100))]
    assert link_rates(before, [known("d0", Role.DECODE, moved(p0=size), life=life)]) == {"p0-d0": None}


@pytest.mark.parametrize(("life", "kv_bytes"), [(2, 900), (1, 50)], ids=["a new life", "a counter that went back"])
def test_counters_that_began_anew_make_no_rate(life: int, kv_bytes: int) -> None:
    before = [known("d0", Role.DECODE, status(100, "p0=cma"))]
    assert rates_of(before, [known("d0", Role.DECODE, status(kv_bytes, "p0=cma"), life=life)]) == {}


def test_there_is_no_rate_without_time_or_a_former_moment() -> None:
    one = [known("d0", Role.DECODE, moved(p0=100))]
    assert rates_of(one, one, seconds=0) == {}
    assert worker_rates(Moment(0, {}), moment(one, 1)) == {}
    assert link_rates(one, one, seconds=0) == link_rates([], one) == {"p0-d0": None}


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
    facts = RoomFacts(
        RoomId(2**62 + number), RequestId(f"r{number}"), 1, dict(zip(PAIR, lives, strict=True)), NOW + 100
    )
    return Entry(number, facts, Running(phase), started)


def test_rooms_are_counted_by_phase_and_the_oldest_listed() -> None:
    phases = [RoomPhase.SUBMITTED] * 3 + [RoomPhase.FIRST_TOKEN] * 2 + [RoomPhase.DECODING] * 20
    seen = rooms_seen([room(n, phase, NOW - 100 + n) for n, phase in enumerate(phases)], 27, NOW)
    assert (seen.waiting, seen.prefill, seen.transfer, seen.decode) == (2, 3, 2, 20)
    assert [row.request_id for row in seen.oldest] == [f"r{n}" for n in range(OLDEST)]
    assert (seen.oldest[0].age_ms, seen.oldest[0].prefill, seen.oldest[0].decode) == (100_000, "p0", "d0")
    assert seen.oldest[0].room == str(2**62), "a browser's numbers are too small for it"
