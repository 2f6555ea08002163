"""How long a choice of workers takes: `python -m tandem.gateway.routing.routing_bench`, part of `tandem bench gateway`.

A router before workers that are numbers only, half of them prefill, half decode, whose slow start is over. Before each
decision the rooms of two workers change. Prints JSON: per policy, the microseconds of CPU that choosing both workers of
a request takes. What is not timed: Sessions, and following what prefix caches hold.

Prompts are turns of conversations, of 4,096 tokens in pages of 16: the first 512 are a system prompt that every worker
holds, the first 2,048 are held by two workers of each role, and the rest is new.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from dataclasses import dataclass
from typing import Final

from tandem.core.affinity import key_of_text
from tandem.core.breaker import BreakerSettings
from tandem.core.cluster import WorkerInfo
from tandem.core.ids import PAIR, Incarnation, Role, RoomId, WorkerId, WorkerLife
from tandem.core.kv_index import KvChange, page_hashes
from tandem.core.layout import KvLayout, PoolLayout
from tandem.core.policies import DEFAULT_PREFIX_TOKENS, PolicyName, policy_named
from tandem.core.prompt_pages import PageMemo
from tandem.core.version import CURRENT
from tandem.gateway.routing.crew import Crew
from tandem.gateway.routing.health import HealthBook
from tandem.gateway.routing.held_pages import HeldPages
from tandem.gateway.routing.room_runs import RoutableWorker
from tandem.gateway.routing.router import MAX_CHUNKS, Router, RouterSettings
from tandem.gateway.routing.sessions import Leg
from tandem.gateway.routing.wish import Wish
from tandem.rpc.tracing.provider import Tracing
from tandem.rpc.tracing.settings import TraceSettings
from tandem.v1 import session_pb2

MODEL: Final = "model"
PLACES: Final = 64
PROMPT: Final = 4096
SYSTEM: Final = tuple(range(512))
HISTORY: Final = 2048
CONVERSATIONS: Final = 256
LAYOUT: Final = KvLayout(16, "bf16", 32, "token", 1, 1, (PoolLayout("kv", (4096,) * 64, 1000),))


@dataclass(slots=True)
class _Worker:
    """One that takes rooms and does nothing."""

    info: WorkerInfo
    in_flight: int = 0

    @property
    def life(self) -> WorkerLife:
        return self.info.life

    def submit(self, submit: session_pb2.Submit, leg: Leg) -> None:
        """Nothing."""

    def cancel(self, room: RoomId, why: Exception) -> None:
        """Nothing."""

    def forget(self, room: RoomId) -> None:
        """Nothing."""


class _Workers:
    """Crews that stay as they are."""

    def __init__(self, count: int) -> None:
        self.crews: dict[Role, Crew[RoutableWorker]] = {}
        for role in Role:
            some = range(0 if role is Role.UNIFIED else count // 2)
            self.crews[role] = Crew([_Worker(_info(role, number)) for number in some])

    def crew(self, role: Role, model: str) -> Crew[RoutableWorker]:
        """The one of a role."""
        del model
        return self.crews[role]

    def known(self, model: str) -> bool:
        """They are."""
        return model == MODEL

    async def wait_changed(self) -> None:
        """They never do."""


def _info(role: Role, number: int) -> WorkerInfo:
    life = WorkerLife(WorkerId(f"{role.value}-{number}"), Incarnation(1))
    return WorkerInfo(life, role, (MODEL,), "127.0.0.1:1", LAYOUT, (), 4096, PLACES, 1000, CURRENT)


class _Prompts:
    """What is asked, and who holds the beginning of it."""

    def __init__(self, workers: _Workers, dice: random.Random) -> None:
        self.held = HeldPages(1 << 20, dice)
        self._dice = dice
        tokens = HISTORY - len(SYSTEM)
        self._histories = [SYSTEM + tuple(dice.getrandbits(17) for _ in range(tokens)) for _ in range(CONVERSATIONS)]
        pages = {life: set(page_hashes(SYSTEM, 16)) for crew in workers.crews.values() for life in crew.lives}
        for history in self._histories:
            for role in PAIR:
                for life in dice.sample(workers.crews[role].lives, 2):
                    pages[life].update(page_hashes(history, 16))
        for life, some in pages.items():
            self.held.index.apply(life, KvChange(0, stored=tuple(some), cleared=True))

    def next(self) -> tuple[int, ...]:
        """A turn of one of them."""
        history, dice = self._dice.choice(self._histories), self._dice
        return (*history, *(dice.getrandbits(17) for _ in range(PROMPT - HISTORY)))


def decide(policy: PolicyName, workers: int, decisions: int, seed: int = 1) -> list[float]:
    """Microseconds of CPU of each decision."""
    dice, among, times = random.Random(seed), _Workers(workers), []
    memo, prompts = PageMemo(MAX_CHUNKS), _Prompts(among, dice)
    router = Router(
        among,
        RouterSettings(),
        dict.fromkeys(Role, policy),
        Tracing("bench", "bench", TraceSettings(enabled=False)),
        health=HealthBook(BreakerSettings(slow_start_s=0)),
        holders=prompts.held,
    )
    for number in range(-decisions // 10, decisions):
        for role in PAIR:
            crew = among.crews[role]
            crew.note_rooms(dice.choice(crew.lives), dice.randrange(PLACES))
        key = key_of_text(str(dice.random()))
        wish = Wish(MODEL, (), key, DEFAULT_PREFIX_TOKENS, prompts.next(), memo)
        began = time.thread_time_ns()
        router.pick(wish)
        if number >= 0:
            times.append((time.thread_time_ns() - began) / 1000)
    return times


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Times the choice of workers.")
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--decisions", type=int, default=20_000)
    parser.add_argument("--policies", nargs="+", default=[policy.value for policy in PolicyName])
    given = parser.parse_args()
    found = {}
    for policy in map(policy_named, given.policies):
        times = sorted(decide(policy, given.workers, given.decisions))
        found[policy.value] = {
            label: times[math.ceil(share * len(times)) - 1] for label, share in (("p50", 0.5), ("p99", 0.99))
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
