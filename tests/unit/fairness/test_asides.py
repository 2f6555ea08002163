"""Several gateways before the same workers: what one waits for is not filled by the others, and none waits for ever."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tandem.core.decode_space import DecodeSpace
from tandem.core.fair_queue import Ask, FairQueue, QueueLimits, State, Ticket
from tandem.core.ids import Role, RoomId, WorkerLife
from tandem.core.page_ledger import Seat
from tandem.engine.worker.page_shares import PageShare, PageShares
from tests.unit.fairness.test_decode_space import PAGE, Workers, worker_life

FACTS: Any = SimpleNamespace(layout=SimpleNamespace(page_size=PAGE), ranks=())
PATIENCE_S = 5.0
PAGES = 10
MODEL = "tiny"


@dataclass(slots=True)
class Wire:
    """Between one gateway and one worker: both directions keep their order, and say nothing of each other's."""

    share: PageShare
    up: deque[tuple[str, Any]] = field(default_factory=deque)
    changed: bool = False
    """Others have more or less than the gateway was told."""
    ended: deque[Seat] = field(default_factory=deque)
    taken: bool = False
    """What the gateway was told last."""


class Gateway:
    """One process: its queue, its account of all workers, and its Sessions."""

    def __init__(self, workers: Workers, shares: dict[WorkerLife, PageShares], dice: random.Random) -> None:
        self.dice = dice
        self.crew = workers.crew
        self.wires: dict[WorkerLife, Wire] = {}
        for life, whole in shares.items():
            self.wires[life] = Wire(whole.join(lambda life=life: self._note(life)))  # type: ignore[misc]
        self.space = DecodeSpace(workers.of, 1, self._freed, lambda life, wanted: self._say(life, wanted))
        self.queue = FairQueue(QueueLimits(1000, 1000, patience_s=PATIENCE_S), self.space)
        self.owner: dict[Seat, Ticket] = {}
        self.to_route: list[Seat] = []
        self.standing: list[Seat] = []
        """Those that wait for a worker with room."""
        self.looks = False

    def _note(self, life: WorkerLife) -> None:
        self.wires[life].changed = True

    def _freed(self) -> None:
        self.looks = True

    def _say(self, life: WorkerLife, wanted: bool) -> None:
        self.wires[life].up.append(("aside", wanted))

    def ask(self, pages: tuple[int, ...], tenant: str, now: float) -> Ticket:
        """A request with so many sequences."""
        seats = tuple(Seat(one * PAGE) for one in pages)
        ticket = self.queue.offer(Ask(tenant, sum(pages), len(pages), pool=MODEL, seats=seats), now)
        self.owner |= dict.fromkeys(seats, ticket)
        if ticket.state is State.GRANTED:
            self.to_route += seats
        return ticket

    def look(self, now: float) -> None:
        """Some have their turn."""
        self.looks = False
        self.to_route += self.standing
        self.standing = []
        self.space.standing.clear()
        self.let_in(self.queue.pump(now))

    def let_in(self, tickets: list[Ticket]) -> None:
        """These have."""
        self.to_route += [seat for ticket in tickets for seat in ticket.ask.seats]

    def route(self) -> None:
        """Sends one sequence, as the router does; one without room waits before all others."""
        seat = self.to_route.pop(self.dice.randrange(len(self.to_route)))
        fit = self.space.roomy(MODEL, Role.DECODE, seat)
        lives = [life for place, life in enumerate(self.crew.lives) if fit is None or fit[place]]
        if not lives:  # as tandem.gateway.routing.decode_room waits
            self.space.put_back()
            self.space.settle()
            self.space.standing[MODEL] += 1
            self.space.stand(MODEL, seat)
            self.standing.append(seat)
            return
        life = self.dice.choice(lives)
        assert life == seat.worker or not self.wires[life].taken, "it was told that another has it put aside"
        self.space.sit(seat, life)
        self.wires[life].up.append(("submit", seat))
        self.space.sent(seat)

    def end(self, seat: Seat, now: float) -> None:
        """A sequence has ended, and with the last one its request."""
        self.space.leave(seat)
        ticket = self.owner.pop(seat)
        if ticket not in self.owner.values():
            self.let_in(self.queue.leave(ticket, now))


class Cluster:
    """Gateways and workers, and what is on its way between them."""

    def __init__(self, seed: int, gateways: int, workers: int) -> None:
        self.dice = random.Random(seed)
        crew = Workers(*[PAGES] * workers)
        self.shares = {worker_life(f"d{number}"): PageShares(FACTS) for number in range(workers)}
        self.gateways = [Gateway(crew, self.shares, self.dice) for _ in range(gateways)]
        self.running: list[tuple[Gateway, WorkerLife, Seat]] = []
        self.now = 0.0

    def possible(self, *, ends: bool) -> list[tuple[str, Any, Any]]:
        """What may happen next."""
        found: list[tuple[str, Any, Any]] = [("end", place, None) for place in range(len(self.running) * ends)]
        for gateway in self.gateways:
            found += [("look", gateway, None)] * gateway.looks
            found += [("route", gateway, None)] * bool(gateway.to_route)
            for life, wire in gateway.wires.items():
                found += [("up", gateway, life)] * bool(wire.up)
                found += [("down", gateway, life)] * bool(wire.changed or wire.ended)
        return found

    def step(self, what: str, who: Any, life: Any) -> None:
        """One of these happens."""
        self.now += 0.1
        if what == "look":
            who.look(self.now)
        elif what == "route":
            who.route()
        elif what == "up":
            self._up(who, life, who.wires[life])
        elif what == "down":
            self._down(who, life, who.wires[life])
        else:
            gateway, life, seat = self.running.pop(who)
            gateway.wires[life].share.free(RoomId(id(seat)))
            gateway.wires[life].ended.append(seat)

    def _up(self, gateway: Gateway, life: WorkerLife, wire: Wire) -> None:
        kind, what = wire.up.popleft()
        if kind == "aside":
            wire.share.put_aside(wanted=what)
        else:
            wire.share.keep(RoomId(id(what)), what.rank, what.tokens)
            self.running.append((gateway, life, what))

    def _down(self, gateway: Gateway, life: WorkerLife, wire: Wire) -> None:
        if wire.changed:
            wire.changed, wire.taken = False, wire.share.taken
            gateway.space.told(life, wire.share.others, taken=wire.taken)
        while wire.ended:
            gateway.end(wire.ended.popleft(), self.now)

    def settle(self) -> None:
        """Everything that is on its way comes, and nothing ends."""
        while found := self.possible(ends=False):
            self.step(*found[0])


@pytest.mark.parametrize("seed", range(40))
def test_whatever_comes_everything_gets_its_turn_and_nothing_stays_aside(seed: int) -> None:
    cluster = Cluster(seed, gateways=2 + seed % 2, workers=1 + seed % 3)
    dice, tickets = cluster.dice, list[Ticket]()
    for _ in range(1_500):
        if len(tickets) < 120 and dice.random() < 0.15:
            large = dice.random() < 0.3
            pages = dice.choice([(10,), (8,), (4, 5), (9, 9)][: 3 + (seed % 3 > 0)]) if large else (dice.randint(1, 4),)
            gateway = dice.choice(cluster.gateways)
            tickets.append(gateway.ask(pages, dice.choice("xy"), cluster.now))
        elif found := cluster.possible(ends=True):
            cluster.step(*dice.choice(found))
    for _ in range(100_000):
        found = cluster.possible(ends=True)
        if not found:
            break
        cluster.step(*dice.choice(found))
    assert all(ticket.state is State.LEFT for ticket in tickets), [one.state for one in tickets]
    for life, whole in cluster.shares.items():
        assert (whole.first, whole.total) == (None, [0]), life
        assert not any(gateway.wires[life].taken for gateway in cluster.gateways)


@pytest.mark.parametrize("seed", range(20))
def test_what_one_waits_for_is_not_filled_by_another(seed: int) -> None:
    cluster = Cluster(seed, gateways=2, workers=1)
    one, other = cluster.gateways
    for _ in range(30):
        other.ask((3,), "small", cluster.now)
    cluster.settle()
    large = one.ask((PAGES,), "large", cluster.now)
    ended_since_aside = 0
    while large.state is State.WAITING:
        ended_since_aside += next(iter(cluster.shares.values())).first is not None
        cluster.step("end", cluster.dice.randrange(len(cluster.running)), None)
        cluster.settle()
    assert 0 < ended_since_aside <= PAGES // 3, "it waits for no more than ran there"


def test_who_asked_first_has_it_first() -> None:
    whole = PageShares(FACTS)
    first, second, third = (whole.join(lambda: None) for _ in range(3))
    for share in (first, second, third, first):
        share.put_aside(wanted=True)
    assert [share.taken for share in (first, second, third)] == [False, True, True]
    first.put_aside(wanted=False)
    first.put_aside(wanted=True)
    assert [share.taken for share in (first, second, third)] == [True, False, True]
    second.leave()
    assert [share.taken for share in (first, third)] == [True, False]
    third.put_aside(wanted=False)
    first.put_aside(wanted=False)
    assert whole.first is None


def test_a_session_that_comes_later_is_told_and_changes_are_told_once() -> None:
    heard: list[str] = []
    whole = PageShares(FACTS)
    first, second = whole.join(lambda: heard.append("first")), whole.join(lambda: heard.append("second"))
    first.put_aside(wanted=True)
    assert sorted(heard) == ["first", "second"]
    second.put_aside(wanted=True)
    assert len(heard) == 2, "nobody else has it for that"
    whole.join(lambda: heard.append("third"))
    assert heard[2:] == ["third"]


def large_in_front_of(pages: tuple[int, ...], workers: int) -> tuple[FairQueue, DecodeSpace, Ticket, list[Ticket], Any]:
    """A queue whose workers are half full, a request that has lost its patience, what runs, and what workers hear."""
    said: list[tuple[str, bool]] = []
    space = DecodeSpace(
        Workers(*[PAGES] * workers).of, 1, say_aside=lambda life, wanted: said.append((str(life), wanted))
    )
    queue = FairQueue(QueueLimits(100, 100, patience_s=PATIENCE_S), space)
    running = [queue.offer(Ask("small", 5, pool=MODEL, seats=(Seat(5 * PAGE),)), 0) for _ in range(workers)]
    large = queue.offer(Ask("large", 9, len(pages), pool=MODEL, seats=tuple(Seat(one * PAGE) for one in pages)), 0)
    for now in (1, 10):
        queue.pump(now)
    return queue, space, large, running, said


def test_what_gathered_for_a_request_is_nobody_elses_until_it_is_sent() -> None:
    queue, space, large, running, said = large_in_front_of((9,), 1)
    life = str(worker_life("d0"))
    assert said == [(life, True)]
    assert queue.leave(running[0], 11) == [large]
    assert said == [(life, True)]
    space.sent(large.ask.seats[0])
    assert said == [(life, True), (life, False)]


@pytest.mark.parametrize("granted", [False, True])
def test_a_request_that_goes_away_leaves_nothing_aside(granted: bool) -> None:
    queue, _, large, running, said = large_in_front_of((9,), 1)
    if granted:
        queue.leave(running[0], 11)
    assert large.state is (State.GRANTED if granted else State.WAITING)
    queue.leave(large, 12)
    assert [wanted for _, wanted in said] == [True, False]


def test_no_worker_is_asked_for_what_needs_two() -> None:
    assert large_in_front_of((9, 9), 2)[4] == []
    assert len(large_in_front_of((4, 6), 2)[4]) == 1, "one has all of it"
