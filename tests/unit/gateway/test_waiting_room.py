"""Requests wait for their turn, and leave nothing behind however they end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from opentelemetry.trace import INVALID_SPAN

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.fair_queue import Ask, Priority, QueueLimits
from tandem.core.refusals import Refusal, Refused
from tandem.gateway.admission.waiting_room import WaitingRoom
from tandem.gateway.admission.wishes import timeout_s
from tests.support.gateway.doubles import AppLimits, finish, http_client, one_each, untraced

TEXT = "/v1/completions"


@dataclass(slots=True)
class Notes:
    """A Watcher that writes down."""

    waits: list[Priority] = field(default_factory=list)

    def saw_wait(self, priority: Priority, waited_s: float) -> None:
        self.waits.append(priority)


class Guest:
    """A request in a waiting room; `end` lets it go."""

    def __init__(self, room: WaitingRoom, ask: Ask) -> None:
        self.inside, self.end = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._stay(room, ask))

    async def _stay(self, room: WaitingRoom, ask: Ask) -> None:
        async with room.place(ask, INVALID_SPAN):
            self.inside.set()
            await self.end.wait()

    async def leave(self) -> None:
        self.end.set()
        await self.task


def room_of(places: int = 1, waiting: int = 2) -> WaitingRoom:
    return WaitingRoom(QueueLimits(places, waiting), Notes(), untraced())


async def until_waiting(room: WaitingRoom, count: int) -> None:
    for _ in range(100):
        if sum(room.waiting().values()) == count:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{room.waiting()} wait")


async def test_turns_come_one_after_the_other() -> None:
    room = room_of()
    first, second = Guest(room, Ask("a", 1)), Guest(room, Ask("a", 1))
    await first.inside.wait()
    await until_waiting(room, 1)
    assert not second.inside.is_set()
    await first.leave()
    await asyncio.wait_for(second.inside.wait(), 20)
    await second.leave()
    assert (room.used, sum(room.waiting().values())) == (0, 0)


async def test_who_stops_waiting_leaves_nothing_behind_and_lets_the_next_in() -> None:
    room = room_of(places=2)
    first = Guest(room, Ask("a", 1))
    await first.inside.wait()
    large = Guest(room, Ask("b", 1, places=2))
    await until_waiting(room, 1)
    small = Guest(room, Ask("b", 1))
    await until_waiting(room, 2)
    large.task.cancel()
    await asyncio.wait({large.task})
    await asyncio.wait_for(small.inside.wait(), 20)
    await first.leave()
    await small.leave()
    assert (room.used, sum(room.waiting().values())) == (0, 0)


async def test_who_is_cancelled_as_its_turn_comes_passes_it_on() -> None:
    room = room_of()
    first, second, third = (Guest(room, Ask("a", 1)) for _ in range(3))
    await until_waiting(room, 2)
    first.end.set()
    await first.task  # second has its turn, and has not run yet
    second.task.cancel()
    await asyncio.wait({second.task})
    await asyncio.wait_for(third.inside.wait(), 20)
    await third.leave()
    assert room.used == 0


async def test_a_deadline_ends_the_wait() -> None:
    room = room_of()
    first = Guest(room, Ask("a", 1))
    await first.inside.wait()
    late = Guest(room, Ask("a", 1, deadline=asyncio.get_running_loop().time() + 0.05))
    with pytest.raises(Refused) as refused:
        await late.task
    assert (refused.value.reason, refused.value.refusal) == (ErrorReason.DEADLINE_EXCEEDED, Refusal.EXPIRED)
    assert sum(room.waiting().values()) == 0
    await first.leave()


async def test_who_has_to_make_way_is_told() -> None:
    room = room_of(waiting=2)
    flood = [Guest(room, Ask("flood", 1)) for _ in range(3)]
    await until_waiting(room, 2)
    other = Guest(room, Ask("other", 1))
    with pytest.raises(Refused) as refused:
        await flood[2].task
    assert refused.value.refusal is Refusal.DISPLACED
    for guest in (flood[0], flood[1], other):
        guest.end.set()
    await asyncio.wait_for(asyncio.gather(flood[0].task, flood[1].task, other.task), 20)
    assert room.used == 0


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan", "inf", "1e3", "0x10", "1,5", "99999999999", " "])
def test_a_bad_timeout_is_refused_by_name(given: str) -> None:
    with pytest.raises(TandemError, match="X-Request-Timeout must be a number of seconds above 0") as refused:
        timeout_s(given, 600)
    assert refused.value.reason is ErrorReason.INVALID_ARGUMENT


@pytest.mark.parametrize(("given", "seconds"), [("", 600), ("30", 30), (".5", 0.5), (" 1.25 ", 1.25), ("601", 600)])
def test_a_timeout_is_bounded(given: str, seconds: float) -> None:
    assert timeout_s(given, 600) == seconds


async def test_a_request_waits_for_a_place_and_is_served() -> None:
    workers = one_each()
    async with http_client(workers, AppLimits(max_concurrent=1, max_queued=4)) as client, asyncio.TaskGroup() as group:
        answers = [group.create_task(client.post(TEXT, json={"prompt": "a"})) for _ in range(3)]
        for _ in answers:
            room = (await workers.decodes[0].next_submit()).room
            assert len(workers.decodes[0].legs) == 1
            workers.decodes[0].bring(finish(room))
            workers.prefills[0].legs.clear()
        metrics = await client.get("/metrics")
    assert [answer.result().status_code for answer in answers] == [200] * 3
    assert 'tandem_gateway_waiting_seconds_count{class="normal"} 3.0' in metrics.text


async def test_a_wait_that_takes_too_long_never_reaches_a_worker() -> None:
    workers = one_each()
    async with http_client(workers, AppLimits(max_concurrent=1, max_queued=4)) as client, asyncio.TaskGroup() as group:
        first = group.create_task(client.post(TEXT, json={"prompt": "a"}))
        room = (await workers.decodes[0].next_submit()).room
        late = await client.post(TEXT, json={"prompt": "a"}, headers={"X-Request-Timeout": "0.05"})
        workers.decodes[0].bring(finish(room))
        await first
        metrics = await client.get("/metrics")
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "deadline_exceeded"
    assert len(workers.decodes[0].submits) == len(workers.prefills[0].submits) == 1
    assert 'tandem_gateway_refusals_total{limit="expired"} 1.0' in metrics.text


async def test_a_bad_timeout_is_400() -> None:
    async with http_client(one_each()) as client:
        answer = await client.post(TEXT, json={"prompt": "a"}, headers={"X-Request-Timeout": "soon"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "X-Request-Timeout"
