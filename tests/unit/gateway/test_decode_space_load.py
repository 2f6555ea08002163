"""Decode's room under any load: no worker is asked for more than it holds, all get their turn, all is given back."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.trace import INVALID_SPAN

from tandem.core.cluster import RankEndpoint
from tandem.core.decode_space import DecodeSpace
from tandem.core.fair_queue import Ask, Priority, QueueLimits
from tandem.core.ids import RankId, Role, WorkerLife
from tandem.core.page_ledger import Seat
from tandem.gateway.admission.waiting_room import WaitingRoom
from tandem.gateway.routing.crew import Crew
from tandem.gateway.routing.decode_room import DecodeRoom
from tests.support.gateway.doubles import NotingWorker, untraced

PAGE_SIZES = {Role.DECODE: 4, Role.UNIFIED: 16}


@dataclass(frozen=True, slots=True)
class Kind:
    """A worker of a cluster."""

    role: Role
    pages: int
    ranks: int


@dataclass(frozen=True, slots=True)
class Load:
    """A request: tokens of each sequence, and how long it runs, in turns of the loop."""

    tenant: str
    tokens: tuple[int, ...]
    turns: int


KINDS = st.builds(Kind, st.sampled_from([*PAGE_SIZES]), st.integers(1, 12), st.integers(1, 2))
LOADS = st.builds(
    Load, st.sampled_from("abc"), st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple), st.integers(0, 5)
)


class Cluster:
    """Workers that count the pages which they were asked for, by themselves."""

    def __init__(self, kinds: list[Kind], patience_s: float) -> None:
        workers: dict[Role, list[NotingWorker]] = {role: [] for role in Role}
        for number, kind in enumerate(kinds):
            one = NotingWorker(f"w{number:02}", kind.role)
            ranks = tuple(RankEndpoint(RankId(rank), "") for rank in range(kind.ranks))
            layout = replace(one.info.layout, page_size=PAGE_SIZES[kind.role])
            one.info = replace(one.info, total_pages=kind.pages, ranks=ranks, layout=layout)
            workers[kind.role].append(one)
        self.crews = {role: Crew(some) for role, some in workers.items()}
        self.space = DecodeSpace(lambda role, _: self.crews[role], 1, lambda: self.waits.freed())
        self.waits = DecodeRoom(self.space, lambda: self.room.look_again())
        limits = QueueLimits(places=1000, max_waiting=1000, patience_s=patience_s)
        self.room = WaitingRoom(limits, self, untraced(), self.space)
        self.asked: Counter[tuple[WorkerLife, int]] = Counter()

    def saw_wait(self, priority: Priority, waited_s: float) -> None:
        """A request got its place."""

    @property
    def largest(self) -> int:
        """Tokens that some worker could hold."""
        infos = [one.info for crew in self.crews.values() for one in crew.workers]
        return max(info.total_pages * info.layout.page_size for info in infos)

    async def serve(self, load: Load, dice: random.Random) -> None:
        """A request from its start to its end."""
        seats = tuple(Seat(min(tokens, self.largest)) for tokens in load.tokens)
        ask = Ask(load.tenant, sum(load.tokens), len(seats), pool="m", seats=seats)
        async with self.room.place(ask, INVALID_SPAN), asyncio.TaskGroup() as group:
            for seat in seats:
                group.create_task(self._run(seat, load.turns, dice))

    async def _run(self, seat: Seat, turns: int, dice: random.Random) -> None:
        while self.space.full("m", seat):
            await self.waits.wait("m", seat)
        roomy = []
        for role in PAGE_SIZES:
            fit, workers = self.space.roomy("m", role, seat), self.crews[role].workers
            roomy += workers if fit is None else [workers[place] for place in np.flatnonzero(fit)]
        chosen = dice.choice(roomy)
        self.space.sit(seat, chosen.life)
        rank, pages = (chosen.life, seat.rank), -(-seat.tokens // chosen.info.layout.page_size)
        self.asked[rank] += pages
        assert self.asked[rank] <= chosen.info.total_pages
        for _ in range(turns):
            await asyncio.sleep(0)
        self.asked[rank] -= pages
        self.space.leave(seat)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(KINDS, min_size=1, max_size=4),
    st.lists(LOADS, min_size=1, max_size=20),
    st.sampled_from([0.0, 1000.0]),
    st.integers(0, 99),
)
def test_no_worker_is_asked_for_more_than_it_holds(
    kinds: list[Kind], loads: list[Load], patience_s: float, seed: int
) -> None:
    async def run() -> None:
        cluster = Cluster(kinds, patience_s)
        dice = random.Random(seed)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for load in loads:
                group.create_task(cluster.serve(load, dice))
        assert not +cluster.asked
        for crew in cluster.crews.values():
            for one in crew.workers:
                assert cluster.space.room_of(one.life) == one.info.total_pages * one.info.layout.page_size

    asyncio.run(run())
