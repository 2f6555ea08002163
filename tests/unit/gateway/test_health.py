"""Circuit breakers in the router: who fails is left out, comes back by a probe, and is given more by and by."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from opentelemetry.trace import INVALID_SPAN

from tandem.core.breaker import BreakerSettings, State
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Incarnation, RequestId, Role, WorkerId, WorkerLife
from tandem.core.policies import PolicyName
from tandem.gateway.routing import health
from tandem.gateway.routing.health import HealthBook
from tandem.gateway.routing.room_runs import Dice, Journey
from tandem.gateway.routing.router import Router, RouterSettings
from tandem.v1 import common_pb2, session_pb2
from tests.support.gateway.doubles import (
    FirstOfAll,
    NotingWorker,
    NotingWorkers,
    finish,
    sequence,
    tokens,
    untraced,
)

HANDED_OVER = session_pb2.FINISH_KIND_HANDED_OVER
FAILED = session_pb2.FINISH_KIND_FAILED


@dataclass(slots=True)
class Room:
    """A request that runs on two workers."""

    task: asyncio.Task[None]
    room: int
    prefill: NotingWorker
    decode: NotingWorker

    @property
    def pair(self) -> tuple[str, str]:
        return self.prefill.life.worker_id, self.decode.life.worker_id

    async def fails(self, reporter: Role, reason: ErrorReason, *, by_peer: bool = False) -> None:
        """One of its legs says so, and the request ends."""
        leg = self.prefill if reporter is Role.PREFILL else self.decode
        failure = common_pb2.Failure(reason=reason.value, message="why", by_peer=by_peer)
        leg.bring(finish(self.room, FAILED, failure=failure))
        with pytest.raises(TandemError):
            await self.task

    async def ends(self) -> None:
        """It is answered."""
        self.prefill.bring(finish(self.room, HANDED_OVER))
        self.decode.bring(finish(self.room))
        await self.task

    async def is_cancelled(self) -> None:
        """Its client goes."""
        self.task.cancel()
        await asyncio.wait({self.task})


@dataclass(slots=True)
class Stage:
    """A router with a clock of its own. Every request has one attempt."""

    workers: NotingWorkers
    now: float = 1000.0
    opened: list[Role] = field(default_factory=list)
    policy: PolicyName = PolicyName.RANDOM
    slow_start_s: float = 0.0
    dice: Dice = field(default_factory=FirstOfAll)
    book: HealthBook = field(init=False)
    router: Router = field(init=False)
    running: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = BreakerSettings(failures=3, open_s=5, slow_start_s=self.slow_start_s)
        self.book = HealthBook(settings, lambda: self.now, self.opened.append)
        policies = dict.fromkeys(Role, self.policy)
        self.router = Router(
            self.workers,
            RouterSettings(1, 0),
            policies,
            untraced(),
            dice=self.dice,
            health=self.book,
        )

    async def request(self) -> Room:
        """Starts one; returns when both legs have their Submit."""
        before = {room for worker in self.workers.prefills for room in worker.legs}
        journey = Journey(RequestId("req"), INVALID_SPAN, asyncio.get_running_loop().time() + 60)
        task = asyncio.create_task(self.router.run(sequence(), journey, lambda _: True))
        self.running.append(task)
        while True:
            await asyncio.sleep(0)
            if new := [(p, room) for p in self.workers.prefills for room in p.legs if room not in before]:
                [(prefill, room)] = new
                return Room(task, room, prefill, next(d for d in self.workers.decodes if room in d.legs))
            assert not task.done()

    def states(self) -> dict[str, State]:
        """Of every worker."""
        everyone = self.workers.prefills + self.workers.decodes
        return {worker.life.worker_id: self.router.breaker_of(worker.life) for worker in everyone}


@asynccontextmanager
async def stage(workers: int = 2, **settings: object) -> AsyncIterator[Stage]:
    """So many of each role."""
    found = NotingWorkers(
        [NotingWorker(f"p{number}", Role.PREFILL) for number in range(workers)],
        [NotingWorker(f"d{number}", Role.DECODE) for number in range(workers)],
    )
    now = Stage(found, **settings)  # type: ignore[arg-type]
    yield now
    for task in now.running:
        task.cancel()
    await asyncio.wait(now.running)


async def test_a_prefill_that_fails_is_left_out_and_no_decode_is_blamed_for_it() -> None:
    async with stage() as now:
        for reporter in (Role.PREFILL, Role.DECODE, Role.PREFILL):
            one = await now.request()
            assert one.pair == ("p0", "d0")
            await one.fails(reporter, ErrorReason.ENGINE_FAILED, by_peer=reporter is Role.DECODE)
        assert now.states() == {"p0": State.OPEN, "p1": State.CLOSED, "d0": State.CLOSED, "d1": State.CLOSED}
        assert now.opened == [Role.PREFILL]
        for _ in range(3):
            assert (await now.request()).pair == ("p1", "d0")


async def test_a_decode_that_fails_is_left_out_and_no_prefill_is_blamed_for_it() -> None:
    async with stage() as now:
        for reporter in (Role.PREFILL, Role.DECODE, Role.DECODE):
            await (await now.request()).fails(reporter, ErrorReason.INTERNAL, by_peer=reporter is Role.PREFILL)
        assert (await now.request()).pair == ("p0", "d1")
        assert now.opened == [Role.DECODE]


@pytest.mark.parametrize("reason", [ErrorReason.LINK_LOST, ErrorReason.POOL_EXHAUSTED, ErrorReason.PEER_LOST])
async def test_what_is_no_sickness_of_a_worker_opens_nothing(reason: ErrorReason) -> None:
    async with stage() as now:
        for _ in range(10):
            await (await now.request()).fails(Role.DECODE, reason)
        assert set(now.states().values()) == {State.CLOSED}


async def opened_prefill(now: Stage) -> None:
    """p0's breaker opens."""
    for _ in range(3):
        await (await now.request()).fails(Role.PREFILL, ErrorReason.ENGINE_FAILED)
    assert now.states()["p0"] is State.OPEN


async def test_a_probe_closes_it_as_soon_as_the_kv_has_arrived() -> None:
    async with stage() as now:
        await opened_prefill(now)
        now.now += 4.9
        assert (await now.request()).pair[0] == "p1"
        now.now += 0.1
        probe = await now.request()
        assert probe.pair[0] == "p0"
        assert (await now.request()).pair[0] == "p1", "one probe at a time"
        probe.decode.bring(tokens(probe.room, 65))
        assert now.states()["p0"] is State.CLOSED
        assert (await now.request()).pair[0] == "p0", "the answer still runs"
        await probe.ends()
        assert now.states()["p0"] is State.CLOSED


async def test_a_probe_that_fails_opens_it_again_and_one_that_is_cancelled_tells_nothing() -> None:
    async with stage() as now:
        await opened_prefill(now)
        now.now += 5
        await (await now.request()).fails(Role.PREFILL, ErrorReason.ENGINE_FAILED)
        assert now.opened == [Role.PREFILL] * 2
        now.now += 4
        assert (await now.request()).pair[0] == "p1"
        now.now += 1
        probe = await now.request()
        assert probe.pair[0] == "p0"
        await probe.is_cancelled()
        assert (await now.request()).pair[0] == "p0", "another probe, at once"
        assert now.opened == [Role.PREFILL] * 2


async def test_a_decode_is_proved_by_a_whole_answer() -> None:
    async with stage() as now:
        for _ in range(3):
            await (await now.request()).fails(Role.DECODE, ErrorReason.ENGINE_FAILED)
        now.now += 5
        probe = await now.request()
        assert probe.pair[1] == "d0"
        probe.decode.bring(tokens(probe.room, 65))
        assert now.states()["d0"] is State.HALF_OPEN
        await probe.ends()
        assert now.states()["d0"] is State.CLOSED


async def test_where_nobody_else_is_there_a_failing_worker_is_asked() -> None:
    async with stage(workers=1) as now:
        await opened_prefill(now)
        one = await now.request()
        assert one.pair == ("p0", "d0")
        await one.ends()
        assert now.states()["p0"] is State.CLOSED


async def test_rooms_from_before_it_opened_do_not_close_it() -> None:
    async with stage() as now:
        early = await now.request()
        await opened_prefill(now)
        await early.ends()
        assert now.states()["p0"] is State.OPEN


async def test_a_worker_that_joins_gets_more_by_and_by() -> None:
    async with stage(policy=PolicyName.LEAST_LOAD, slow_start_s=10.0) as now:
        for worker in now.workers.prefills + now.workers.decodes:
            worker.info = replace(worker.info, max_running=20)
        late = now.workers.prefills.pop()
        await now.request()
        now.now += 10
        for _ in range(9):
            await now.request()
        now.workers.prefills.append(late)
        first = [(await now.request()).pair[0] for _ in range(10)]
        assert first.count("p1") == 2, "two of its twenty places count, though p0 has ten rooms more"
        now.now += 10
        after = [(await now.request()).pair[0] for _ in range(10)]
        assert after.count("p1") == 10


@dataclass(slots=True)
class NotingRoom:
    """A room that has failed."""

    failure: TandemError
    blamed: Role | None
    complete: bool = False

    def on_kv_arrived(self, hook: Callable[[], None]) -> None:
        """It never does."""


class Seeded(Dice):
    """Dice that fall the same each time."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)

    def draw(self) -> int:
        """32 bits."""
        return self._dice.getrandbits(32)

    def bits(self, count: int) -> int:
        """So many."""
        return self._dice.getrandbits(count)


async def serve(now: Stage, rooms: int, bad: str) -> None:
    """Rooms one after the other; every second of those with a worker fails, by a link that either end may have lost."""
    with_it = 0
    for _ in range(rooms):
        now.now += 0.01
        one = await now.request()
        with_it += bad in one.pair
        if bad in one.pair and with_it % 2:
            await one.fails(Role.DECODE, ErrorReason.LINK_LOST)
        else:
            await one.ends()


@pytest.mark.parametrize("bad", ["p2", "d1"])
async def test_the_end_with_the_bad_card_is_found_though_nobody_is_to_blame(bad: str) -> None:
    async with stage(workers=4, dice=Seeded(7)) as now:
        await serve(now, 200, bad)
        assert {name for name, state in now.states().items() if state is not State.CLOSED} == {bad}
        assert now.opened == [Role.PREFILL if bad[0] == "p" else Role.DECODE]
        assert not any([bad in (await now.request()).pair for _ in range(20)])


async def test_who_stands_out_again_is_left_out_longer() -> None:
    async with stage(workers=4, dice=Seeded(7)) as now:
        away = []
        for _ in range(3):
            while now.states()["p2"] is State.CLOSED:
                await serve(now, 1, "p2")
            left = now.now
            while now.states()["p2"] is not State.CLOSED:
                await serve(now, 1, "nobody")
            away.append(now.now - left)
        assert [round(seconds / 5) for seconds in away] == [1, 2, 3]


async def test_the_probe_of_one_that_stood_out_may_not_fail_by_the_link_again() -> None:
    async with stage(workers=4, dice=Seeded(7)) as now:
        while now.states()["p2"] is State.CLOSED:
            await serve(now, 1, "p2")
        now.now += 5
        while "p2" not in (probe := await now.request()).pair:
            await probe.ends()
        await probe.fails(Role.DECODE, ErrorReason.LINK_LOST)
        assert now.opened == [Role.PREFILL] * 2
        now.now += 4.9
        assert "p2" not in [(await now.request()).pair[0] for _ in range(20)]
        now.now += 0.1
        assert "p2" in [(await now.request()).pair[0] for _ in range(40)]


async def test_all_that_fail_alike_are_kept() -> None:
    async with stage(workers=4, dice=Seeded(7)) as now:
        for number in range(300):
            one = await now.request()
            await (one.ends() if number % 2 else one.fails(Role.DECODE, ErrorReason.TRANSFER_FAILED))
        assert set(now.states().values()) == {State.CLOSED}


@pytest.mark.parametrize("gone_is_out", [True, False])
def test_who_has_gone_is_not_one_of_those_of_whom_half_may_be_left_out(gone_is_out: bool) -> None:
    now, there = [0.0], [WorkerLife(WorkerId(name), Incarnation(1)) for name in ("d0", "d1")]
    book = HealthBook(BreakerSettings(failures=1, open_s=5), lambda: now[0], there=lambda _: there)
    lost = NotingRoom(TandemError(ErrorReason.LINK_LOST, "why"), None)

    def rooms(life: WorkerLife, ended: NotingRoom, count: int = 25) -> None:
        for _ in range(count):
            with book.watching(ended, {Role.DECODE: life}):
                pass

    before = [WorkerLife(WorkerId("d0"), Incarnation(number)) for number in (2, 3)]
    for life in before:
        rooms(life, NotingRoom(TandemError(ErrorReason.LINK_LOST, "why"), None, complete=True))
        if gone_is_out:
            rooms(life, NotingRoom(TandemError(ErrorReason.ENGINE_FAILED, "why"), Role.DECODE), 1)
    rooms(there[0], lost)
    assert book.state_of(there[0]) is State.OPEN
    rooms(there[1], lost)
    assert book.state_of(there[1]) is State.CLOSED, "else both of the two would be out"


def test_no_more_lives_are_remembered_than_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_LIVES", 3)
    now = 0.0
    book = HealthBook(BreakerSettings(slow_start_s=10), lambda: now)
    lives = [WorkerLife(WorkerId(f"w{number}"), Incarnation(1)) for number in range(4)]

    def places(life: WorkerLife) -> int:
        """Of its twenty, those that count now."""
        book.meet([life])
        return round(20 * next((one.share for one in book.exceptional() if one.life == life), 1.0))

    for life in lives:
        assert places(life) == 2
    now = 10.0
    assert [places(life) for life in reversed(lives)] == [20, 20, 20, 2], "the first was forgotten, and joins"


def test_who_is_exceptional_is_said_anew_once_something_has_changed() -> None:
    now, life = [100.0], WorkerLife(WorkerId("p0"), Incarnation(1))
    book = HealthBook(BreakerSettings(failures=1, open_s=5, slow_start_s=10), lambda: now[0])
    assert book.exceptional() is book.exceptional()
    book.meet([life])
    [joined] = first = book.exceptional()
    assert (joined.takes, joined.share) == (True, 0.1)
    now[0] += health.TOLD_S / 2
    assert book.exceptional() is first
    now[0] += 5
    [grown] = book.exceptional()
    assert grown.share == pytest.approx(0.5, abs=0.01)
    failed = NotingRoom(TandemError(ErrorReason.ENGINE_FAILED, "why"), Role.PREFILL)
    with book.watching(failed, {Role.PREFILL: life}):
        pass
    [out] = book.exceptional()
    assert not out.takes
    now[0] += 4.99
    assert not book.exceptional()[0].takes
    now[0] += 0.01
    assert book.exceptional()[0].takes, "at the very moment, not a little later"
