"""What gateways say, as a planner reads it: all of them as one, or nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

import pytest

from tandem.cli.planner.planner_metrics import PlannerMetrics
from tandem.cli.planner.service import follow
from tandem.cli.planner.sights import Gateways, Sight, sight
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.planner.demand import Traffic
from tandem.rpc.tasks import TaskSupervisor
from tandem.v1 import admin_pb2
from tests.support.planner import worker

Message = admin_pb2.WatchClusterResponse


def says(*workers: admin_pb2.WorkerNumbers, times: int = 1) -> Message:
    """A gateway that has counted so many times as much as another."""
    counted = {"asked": 7, "prompt_tokens": 700, "first_tokens": 5, "completion_tokens": 50, "waiting": 3}
    return Message(workers=workers, **{name: times * count for name, count in counted.items()})


def test_it_sees_who_is_there_and_only_what_decode_holds() -> None:
    decode = worker("decode-0", pages_free=50, pages_granted=20, in_flight=1)
    found = sight([says(decode, worker("decode-1", up=False), worker("decode-2", known=False))])
    (one,) = found.workers
    assert (one.pages, one.pages_held) == (100, 30)
    assert found.busy == {"decode-0"}


def test_requests_of_all_gateways_add_up_and_each_worker_counts_once() -> None:
    prefill, decode = worker("prefill-0", running=1, waiting=4), worker("decode-0", running=5)
    found = sight([says(prefill, decode), says(prefill, decode, times=2)])
    assert found.traffic == Traffic(21, 2100, 15, 150, 9)
    assert [(one.worker_id, one.running, one.waiting) for one in found.workers] == [
        ("prefill-0", 1, 4),
        ("decode-0", 5, 0),
    ]


def test_of_a_worker_the_last_to_speak_is_believed_and_who_does_not_reach_it_is_not() -> None:
    found = sight([says(worker("decode-0", running=1)), says(worker("decode-0", running=2))])
    assert [one.running for one in found.workers] == [2]
    found = sight([says(worker("decode-0", running=1)), says(worker("decode-0", up=False))])
    assert [one.running for one in found.workers] == [1]


def test_a_worker_has_something_to_do_as_long_as_one_gateway_has_a_room_on_it() -> None:
    idle = worker("decode-0")
    assert sight([says(worker("decode-0", in_flight=1)), says(idle)]).busy == {"decode-0"}
    assert not sight([says(idle), says(idle)]).busy


def test_nothing_is_seen_until_all_have_spoken_since_the_time_before() -> None:
    gateways = Gateways(("a", "b"))
    assert gateways.take("a", says()) is None
    assert gateways.take("a", says()) is None
    found = gateways.take("b", says(times=2))
    assert found is not None
    assert found.traffic.asked == 21
    assert gateways.take("b", says(times=3)) is None
    found = gateways.take("a", says())
    assert found is not None
    assert found.traffic.asked == 28, "the latest of each"


def test_nothing_is_seen_while_one_is_not_heard() -> None:
    gateways = Gateways(("a", "b"))
    gateways.take("a", says())
    assert gateways.take("b", says()) is not None
    gateways.lost("b")
    assert [gateways.take("a", says()) for _ in range(5)] == [None] * 5
    assert gateways.take("b", says()) is not None


class Eyes:
    """A pilot that writes down what it is shown."""

    def __init__(self) -> None:
        self.shown: asyncio.Queue[Sight | None] = asyncio.Queue()

    async def take(self, seen: Sight, now: float) -> None:
        """A sight."""
        self.shown.put_nowait(seen)

    def blind(self) -> None:
        """None is there."""
        self.shown.put_nowait(None)


async def test_a_gateway_that_hangs_up_is_said_once_and_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    """It is there, refuses twice, and is there again."""
    caplog.set_level(logging.INFO)
    lives = iter((True, False, False, True))

    async def messages() -> AsyncGenerator[Message, None]:
        if next(lives, False):
            yield says()
        raise TandemError(ErrorReason.PEER_LOST, "the gateway at a:1 hung up")

    eyes, metrics, tasks = Eyes(), PlannerMetrics(), TaskSupervisor()
    tasks.spawn(follow("a:1", messages, Gateways(("a:1",)), metrics, eyes), "gateway")
    async with asyncio.timeout(60):
        seen = [await eyes.shown.get() for _ in range(6)]
    assert [one is not None for one in seen] == [True, False, False, False, True, False]
    assert 'tandem_planner_connected{gateway="a:1"} 0.0' in metrics.metrics.render().decode()
    await tasks.close()
    said = [record.message for record in caplog.records]
    assert said == [
        "the gateway at a:1 hung up: nothing is decided until it is heard",
        "the gateway at a:1 is heard again",
        "the gateway at a:1 hung up: nothing is decided until it is heard",
    ]
