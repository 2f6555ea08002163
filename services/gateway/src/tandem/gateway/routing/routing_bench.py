"""How long a choice of workers takes: `python -m tandem.gateway.routing.routing_bench`, part of `tandem bench gateway`.

A router before workers that are numbers only, half of them prefill, half decode, whose slow start is over. Before each
decision the rooms of a worker change. Prints JSON: per policy, the microseconds of CPU that choosing both workers of a
request takes. What is not timed: Sessions, and following what prefix caches hold.
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
from tandem.core.ids import Incarnation, Role, RoomId, WorkerId, WorkerLife
from tandem.core.layout import KvLayout, PoolLayout
from tandem.core.policies import DEFAULT_PREFIX_TOKENS, PolicyName
from tandem.core.version import CURRENT
from tandem.gateway.routing.crew import Crew
from tandem.gateway.routing.health import HealthBook
from tandem.gateway.routing.room_runs import RoutableWorker
from tandem.gateway.routing.router import Router, RouterSettings
from tandem.gateway.routing.sessions import Leg
from tandem.gateway.routing.wish import Wish
from tandem.rpc.tracing.provider import Tracing
from tandem.rpc.tracing.settings import TraceSettings
from tandem.v1 import session_pb2

MODEL: Final = "model"
PLACES: Final = 64
PROMPT: Final = tuple(range(1000, 5096))
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


def decide(policy: PolicyName, workers: int, decisions: int, seed: int = 1) -> list[float]:
    """Microseconds of CPU of each decision."""
    dice, among, times = random.Random(seed), _Workers(workers), []
    router = Router(
        among,
        RouterSettings(),
        dict.fromkeys(Role, policy),
        Tracing("bench", "bench", TraceSettings(enabled=False)),
        health=HealthBook(BreakerSettings(slow_start_s=0)),
    )
    for number in range(-decisions // 10, decisions):
        for role in (Role.PREFILL, Role.DECODE):
            crew = among.crews[role]
            crew.note_rooms(dice.choice(crew.lives), dice.randrange(PLACES))
        key = key_of_text(str(dice.random()))
        wish = Wish(MODEL, (), key, DEFAULT_PREFIX_TOKENS, (dice.getrandbits(32), *PROMPT))
        began = time.thread_time_ns()
        router.pick(wish)
        if number >= 0:
            times.append((time.thread_time_ns() - began) / 1000)
    return times


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Times the choice of workers.")
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--decisions", type=int, default=2_000)
    given = parser.parse_args()
    found = {}
    for policy in PolicyName:
        times = sorted(decide(policy, given.workers, given.decisions))
        found[policy.value] = {
            label: times[math.ceil(share * len(times)) - 1] for label, share in (("p50", 0.5), ("p99", 0.99))
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
