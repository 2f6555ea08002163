"""Decode is asked for no more than its pages hold."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tandem.core.decode_space import DecodeSpace
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.fair_queue import Ask, FairQueue, QueueLimits, State
from tandem.core.ids import Incarnation, Role, WorkerId, WorkerLife
from tandem.core.page_ledger import PageLedger, PagePool, Seat
from tandem.gateway.routing.crew import Crew
from tandem.gateway.routing.decode_room import DecodeRoom
from tests.support.bootstrap.workers import worker
from tests.support.gateway.doubles import NotingWorker

PAGE = worker("d0", Role.DECODE, incarnation=1).layout.page_size


def worker_life(worker_id: str) -> WorkerLife:
    """Of a worker in these tests."""
    return WorkerLife(WorkerId(worker_id), Incarnation(1))


class Workers:
    """Decode workers of one model, which come and go."""

    def __init__(self, *pages: int) -> None:
        self.crew = Crew[NotingWorker]([])
        self.nobody = Crew[NotingWorker]([])
        self.set(*pages)

    def set(self, *pages: int) -> None:
        """There are so many now, with so many pages."""
        workers = [NotingWorker(f"d{number}", Role.DECODE) for number in range(len(pages))]
        for one, total in zip(workers, pages, strict=True):
            one.info = replace(one.info, total_pages=total)
        self.crew = Crew(workers)

    def of(self, role: Role, model: str) -> Crew[NotingWorker]:
        """Each model has the same."""
        return self.crew if role is Role.DECODE else self.nobody


def queue_of(*pages: int, commit: float = 1, patience_s: float = 2) -> tuple[FairQueue, DecodeSpace, Workers]:
    """Pages of each worker."""
    workers = Workers(*pages)
    space = DecodeSpace(workers.of, commit)
    return FairQueue(QueueLimits(places=100, max_waiting=100, patience_s=patience_s), space), space, workers


def ask(pages: float, places: int = 1, pool: str = "tiny", tenant: str = "a") -> Ask:
    """A request whose sequences need so many pages each."""
    tokens = int(pages * PAGE)
    return Ask(tenant, tokens * places, places, pool=pool, seats=tuple(Seat(tokens) for _ in range(places)))


def test_what_does_not_fit_now_waits_until_it_does() -> None:
    queue, _, _ = queue_of(10)
    first, second = queue.offer(ask(6), 0), queue.offer(ask(6), 0)
    assert (first.state, second.state) == (State.GRANTED, State.WAITING)
    assert queue.leave(first, 1) == [second]


def test_a_page_that_is_begun_counts_whole() -> None:
    queue, _, _ = queue_of(2)
    states = [queue.offer(ask(1 / PAGE), 0).state for _ in range(3)]
    assert states == [State.GRANTED, State.GRANTED, State.WAITING]


def test_what_no_worker_could_ever_hold_is_refused_for_good() -> None:
    queue, _, _ = queue_of(10, 4)
    with pytest.raises(TandemError, match=f"holds {10 * PAGE} at most") as refused:
        queue.offer(ask(11), 0)
    assert refused.value.reason is ErrorReason.INVALID_ARGUMENT
    assert queue.offer(ask(10), 0).state is State.GRANTED


def test_a_request_that_needs_more_than_all_of_them_goes_on_with_what_fits() -> None:
    queue, space, _ = queue_of(10)
    before = queue.offer(ask(1), 0)
    several = queue.offer(ask(8, places=3), 0)
    assert several.state is State.WAITING
    assert queue.leave(before, 1) == [several]
    assert [seat.worker for seat in several.ask.seats].count(None) == 2
    queue.leave(several, 2)
    assert space.room_of(worker_life("d0")) == 10 * PAGE


def test_no_worker_is_asked_for_what_only_all_of_them_could_hold() -> None:
    queue, _, _ = queue_of(10, 10)
    first, second, third = (queue.offer(ask(6), 0) for _ in range(3))
    assert [one.state for one in (first, second, third)] == [State.GRANTED, State.GRANTED, State.WAITING]
    assert {seat.worker for one in (first, second) for seat in one.ask.seats} == {worker_life("d0"), worker_life("d1")}
    assert queue.offer(ask(4, tenant="b"), 0).state is State.GRANTED, "another tenant's goes by, as it fits"
    assert queue.leave(second, 1) == [third]


def test_a_large_one_gets_a_worker_to_itself_while_small_ones_use_the_others() -> None:
    queue, space, _ = queue_of(10, 10, patience_s=5)
    small = [queue.offer(ask(2, tenant="small"), 0) for _ in range(10)]
    large = queue.offer(ask(10, tenant="large"), 0)
    waiting = [queue.offer(ask(2, tenant="small"), 0) for _ in range(20)]
    assert queue.leave(small[0], 1) == waiting[:1], "it has patience"
    running, ended = small[1:] + waiting[:1], 0
    while large.state is State.WAITING:
        running += queue.leave(running.pop(0), 10 + ended)
        ended += 1
    assert ended <= len(small), "no more than were there"
    others = [one for one in running if one is not large]
    assert len(others) == 5, "the other worker is full all the time"
    assert {seat.worker for one in others for seat in one.ask.seats} != {large.ask.seats[0].worker}
    assert space.room_of(large.ask.seats[0].worker or worker_life("")) == 0


def test_nothing_stays_aside_for_one_that_has_gone() -> None:
    queue, _, _ = queue_of(10)
    small, large = queue.offer(ask(2, tenant="small"), 0), queue.offer(ask(10, tenant="large"), 0)
    for now in (1, 9):
        queue.pump(now)
    queue.leave(large, 10)
    assert queue.offer(ask(2, tenant="small"), 10).state is State.GRANTED
    queue.leave(small, 11)


def test_a_worker_that_comes_makes_room() -> None:
    queue, space, workers = queue_of(10)
    queue.offer(ask(9), 0)
    second = queue.offer(ask(9), 0)
    assert second.state is State.WAITING
    workers.set(10, 10)
    space.changed()
    assert queue.pump(1) == [second]


def test_nothing_is_lost_when_workers_change_while_it_runs() -> None:
    queue, space, workers = queue_of(10)
    tickets = [queue.offer(ask(2), 0) for _ in range(3)]
    assert {ticket.state for ticket in tickets} == {State.GRANTED}
    workers.set()
    space.changed()
    assert queue.offer(ask(3), 0).state is State.GRANTED, "where nobody decodes, the router says so"
    for ticket in tickets:
        queue.leave(ticket, 1)
    workers.set(10)
    space.changed()
    assert [queue.offer(ask(2), 2).state for _ in range(6)] == [State.GRANTED] * 5 + [State.WAITING]


def test_a_seat_moves_to_the_worker_that_was_chosen() -> None:
    queue, space, workers = queue_of(10, 10)
    ticket, seat = queue.offer(ask(6), 0), Seat(6 * PAGE)
    [own] = ticket.ask.seats
    there, elsewhere = sorted(workers.crew.lives, key=lambda life: life != own.worker)
    assert space.roomy("tiny", Role.DECODE, own) is None, "all have room for it, counting its own"
    roomy = space.roomy("tiny", Role.DECODE, seat)
    assert roomy is not None
    assert [life for life, fits in zip(workers.crew.lives, roomy, strict=True) if fits] == [elsewhere]
    space.sit(own, elsewhere)
    assert (space.room_of(there), space.room_of(elsewhere)) == (10 * PAGE, 4 * PAGE)
    space.leave(own)
    assert queue.leave(ticket, 1) == []
    assert space.room_of(elsewhere) == 10 * PAGE


async def test_what_has_its_place_waits_for_a_worker_with_room_before_all_others() -> None:
    queue, space, _ = queue_of(10)
    several = queue.offer(ask(8, places=2), 0)
    seated, standing = sorted(several.ask.seats, key=lambda seat: seat.worker is None)
    assert (seated.worker, standing.worker) == (worker_life("d0"), None)
    assert space.full("tiny", standing)
    room = DecodeRoom(space)
    waiting = asyncio.create_task(room.wait("tiny", standing))
    await asyncio.sleep(0)
    assert queue.offer(ask(2, tenant="b"), 0).state is State.WAITING
    space.leave(seated)
    room.freed()
    await asyncio.wait_for(waiting, 10)
    assert not space.full("tiny", standing)


@pytest.mark.parametrize(("commit", "running"), [(1, 2), (2, 4), (0, 6)])
def test_pages_may_be_given_away_more_than_once(commit: float, running: int) -> None:
    queue, _, _ = queue_of(11, commit=commit)
    assert [queue.offer(ask(4.5), 0).state for _ in range(6)].count(State.GRANTED) == running


def test_what_other_gateways_have_there_is_no_room() -> None:
    queue, space, _ = queue_of(10, 6)
    d0, d1 = worker_life("d0"), worker_life("d1")
    space.told(d0, (7,))
    assert queue.offer(ask(5), 0).ask.seats[0].worker == d1
    assert [space.room_of(life) for life in (d0, d1)] == [3 * PAGE, PAGE]
    assert space.largest_now(["tiny"]) == {"tiny": 3 * PAGE}
    waiting = queue.offer(ask(9), 0)
    assert waiting.state is State.WAITING
    space.told(d0, (1,))
    assert queue.pump(1) == [waiting]
    assert space.room_of(d0) == 0


@pytest.mark.parametrize("end", [(0,), ()], ids=["they have ended", "the worker is not heard any more"])
def test_who_waits_is_woken_when_others_have_less(end: tuple[int, ...]) -> None:
    woken: list[None] = []
    space = DecodeSpace(Workers(10).of, 1, lambda: woken.append(None))
    space.told(worker_life("d0"), (8,))
    assert space.largest_now(["tiny"]) == {"tiny": 2 * PAGE}, "also of what was told before anybody asked"
    space.told(worker_life("d0"), (9,))
    assert not woken
    space.told(worker_life("d0"), end)
    assert woken
    assert space.largest_now(["tiny"]) == {"tiny": 10 * PAGE}


def test_a_sequence_goes_to_the_rank_where_others_have_least() -> None:
    ledger = PageLedger()
    pool = PagePool(worker_life("d0"), pages=10, page_tokens=PAGE, ranks=3)
    ledger.told(pool.life, (6, 2, 4))
    ledger.places([pool])
    seats = [Seat(3 * PAGE) for _ in range(3)]
    for seat in seats:
        ledger.sit(seat, pool.life)
    assert [seat.rank for seat in seats] == [1, 2, 1]
    assert ledger.room_of(pool.life) == 4 * PAGE
