"""Sequences go only to workers with room for them, by any policy, and wait where there is none."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from opentelemetry.trace import INVALID_SPAN

from tandem.core.affinity import NO_KEY
from tandem.core.decode_space import DecodeSpace
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RequestId, Role
from tandem.core.page_ledger import Seat
from tandem.core.policies import PolicyName
from tandem.core.prompt_pages import PageMemo
from tandem.gateway.routing.crew import Crew
from tandem.gateway.routing.decode_room import DecodeRoom
from tandem.gateway.routing.room_runs import Journey
from tandem.gateway.routing.router import Router, RouterSettings
from tandem.gateway.routing.wish import Wish
from tests.support.gateway.doubles import MODEL, NotingWorker, NotingWorkers, finish, sequence, untraced

PAGES = 10
ALL = PAGES * 16
"""Tokens that a worker holds."""


class Steady(NotingWorkers):
    """Workers whose crews are the same until a test makes others."""

    def __init__(self) -> None:
        super().__init__([NotingWorker("p0", Role.PREFILL)], [NotingWorker(name, Role.DECODE) for name in ("d0", "d1")])
        for one in self.decodes:
            one.info = replace(one.info, total_pages=PAGES)
        self.crews: dict[Role, Crew[NotingWorker]] = {}

    def crew(self, role: Role, model: str) -> Crew[NotingWorker]:
        """As they were when it was asked for first."""
        if role not in self.crews:
            self.crews[role] = super().crew(role, model)
        return self.crews[role]


class Noting(DecodeRoom):
    """Says when a sequence waits for room."""

    def __init__(self, workers: Steady) -> None:
        super().__init__(DecodeSpace(workers.crew, 1, lambda: self.freed()))
        self.stands = asyncio.Event()

    async def wait(self, model: str, seat: Seat) -> None:
        """As it does."""
        self.stands.set()
        await super().wait(model, seat)


def system(policy: PolicyName = PolicyName.ROUND_ROBIN) -> tuple[Steady, Noting, Router]:
    """A prefill worker, two decode workers, and a router that knows what room they have."""
    workers = Steady()
    room = Noting(workers)
    settings = RouterSettings(retry_backoff_ms=0, prefix_tokens=8)
    return workers, room, Router(workers, settings, dict.fromkeys(Role, policy), untraced(), room=room)


def taken(space: DecodeSpace, worker: NotingWorker, tokens: int) -> Seat:
    """So much of a worker is somebody else's."""
    seat = Seat(tokens)
    assert not space.full(MODEL, Seat(ALL)), "opens the accounts"
    space.sit(seat, worker.life)
    return seat


@pytest.mark.parametrize("policy", PolicyName)
def test_every_policy_chooses_among_those_with_room(policy: PolicyName) -> None:
    workers, room, router = system(policy)
    taken(room.space, workers.decodes[0], 16)
    for number in range(20):
        wish = Wish(MODEL, (), NO_KEY, 8, tuple(range(number, number + 64)), PageMemo(64), Seat(ALL))
        assert router.pick(wish)[Role.DECODE].worker is workers.decodes[1]


async def test_another_attempt_waits_for_room_elsewhere() -> None:
    workers, noting, router = system()
    space = noting.space
    lost, busy = workers.decodes
    other, seat = taken(space, busy, 16), Seat(ALL)
    space.sit(seat, lost.life)
    one = replace(sequence(), index=0)
    journey = Journey(RequestId("r"), INVALID_SPAN, asyncio.get_running_loop().time() + 60, NO_KEY, (seat,))
    task = asyncio.create_task(router.run(one, journey, lambda _: True))
    await lost.next_submit()
    workers.decodes.remove(lost)
    workers.crews.clear()
    lost.lose(TandemError(ErrorReason.PEER_LOST, "gone"))
    await asyncio.wait_for(noting.stands.wait(), 20)
    assert not busy.submits
    space.leave(other)
    room = (await busy.next_submit()).room
    assert seat.worker == busy.life
    busy.bring(finish(room))
    await asyncio.wait_for(task, 20)
    assert space.room_of(busy.life) == ALL
