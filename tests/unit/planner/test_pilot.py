"""`tandem planner` without a cluster: what it reads, what it says, and what it does with the command."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import ValidationError

from tandem.cli.planner.hook import run_hook
from tandem.cli.planner.pilot import Pilot
from tandem.cli.planner.planner_metrics import PlannerMetrics
from tandem.cli.planner.settings import PlannerSettings
from tandem.cli.planner.sights import sight
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import WorkerId
from tandem.rpc.tasks import TaskSupervisor
from tandem.v1 import admin_pb2
from tests.support.planner import worker

SETTINGS = PlannerSettings(hold_s=2, smooth_s=0.1, rest_s=1, move_s=0)


@dataclass
class Cluster:
    """What a pilot is told, and what it does."""

    drained: dict[str, bool] = field(default_factory=dict)
    busy: int = 0
    """Rooms of a worker that drains."""
    asked: int = 0
    hooked: asyncio.Queue[Mapping[str, str]] = field(default_factory=asyncio.Queue)
    fails: bool = False
    now: float = 0.0

    async def drain(self, worker_id: WorkerId, draining: bool) -> None:
        self.drained[worker_id] = draining

    async def hook(self, told: Mapping[str, str]) -> None:
        self.hooked.put_nowait(told)
        if self.fails:
            raise TandemError(ErrorReason.INTERNAL, "it ended with code 1")

    def message(self) -> admin_pb2.WatchClusterResponse:
        """Prefill has more than it can do, decode has nothing."""
        decodes = (
            worker(name, draining=self.drained.get(name, False), running=self.busy if self.drained.get(name) else 0)
            for name in ("decode-9", "decode-10", "decode-2")
        )
        prefill = worker("prefill-0", running=1, waiting=30)
        asked, begun = self.asked, self.asked // 2
        return admin_pb2.WatchClusterResponse(workers=[*decodes, prefill], asked=asked, first_tokens=begun)

    async def tell(self, pilot: Pilot, looks: int) -> None:
        for _ in range(looks):
            await pilot.take(sight([self.message()]), self.now)
            self.now += 1
            self.asked += 4
            # What the pilot has begun goes on until it waits.
            for _ in range(5):
                await asyncio.sleep(0)


def shown(metrics: PlannerMetrics, series: str) -> float:
    """One value of /metrics."""
    lines = metrics.metrics.render().decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == series)


async def test_it_recommends_once_and_tells_how_many_there_should_be() -> None:
    cluster, metrics, tasks = Cluster(), PlannerMetrics(), TaskSupervisor()
    await cluster.tell(Pilot(SETTINGS, metrics, tasks, cluster.drain, None), 100)
    assert shown(metrics, 'tandem_planner_wanted_workers{role="prefill"}') == 2
    assert shown(metrics, 'tandem_planner_wanted_workers{role="decode"}') == 2
    assert shown(metrics, 'tandem_planner_workers{role="decode"}') == 3
    assert shown(metrics, 'tandem_planner_advice_total{change="move"}') == 1
    assert not cluster.drained
    await tasks.close()


async def test_who_leaves_is_drained_and_empty_before_the_command_runs_once() -> None:
    cluster, metrics, tasks = Cluster(busy=3), PlannerMetrics(), TaskSupervisor()
    pilot = Pilot(SETTINGS, metrics, tasks, cluster.drain, cluster.hook)
    await cluster.tell(pilot, 20)
    assert cluster.drained == {"decode-10": True}
    assert cluster.hooked.empty(), "it still has rooms"
    cluster.busy = 0
    await cluster.tell(pilot, 100)
    told = cluster.hooked.get_nowait()
    assert (told["PLANNER_CHANGE"], told["PLANNER_GIVES"], told["PLANNER_GETS"]) == ("move", "decode", "prefill")
    assert (told["PLANNER_WORKER"], told["PLANNER_PREFILL"], told["PLANNER_DECODE"]) == ("decode-10", "2", "2")
    assert cluster.hooked.empty()
    assert shown(metrics, 'tandem_planner_applied_total{outcome="succeeded"}') == 1
    await tasks.close()


async def test_a_command_that_fails_is_counted_and_tried_ever_later_and_the_worker_is_given_back() -> None:
    cluster, metrics, tasks = Cluster(fails=True), PlannerMetrics(), TaskSupervisor()
    pilot = Pilot(
        SETTINGS.model_copy(update={"patience_s": 1, "rest_s": 4}), metrics, tasks, cluster.drain, cluster.hook
    )
    await cluster.tell(pilot, 8)
    assert cluster.drained == {"decode-10": False}
    assert shown(metrics, 'tandem_planner_applied_total{outcome="failed"}') == 1
    await cluster.tell(pilot, 120)
    assert 2 <= shown(metrics, 'tandem_planner_applied_total{outcome="failed"}') <= 5
    await tasks.close()


async def test_where_a_gateway_is_not_heard_what_was_seen_does_not_count_as_having_lasted() -> None:
    """A change takes what lasts for 2 s. Heard for a second each time, it is not made; heard for longer, it is."""
    cluster, metrics, tasks = Cluster(), PlannerMetrics(), TaskSupervisor()
    pilot = Pilot(SETTINGS, metrics, tasks, cluster.drain, None)
    for _ in range(20):
        await cluster.tell(pilot, 2)
        pilot.blind()
    assert shown(metrics, 'tandem_planner_advice_total{change="move"}') == 0
    await cluster.tell(pilot, 10)
    assert shown(metrics, 'tandem_planner_advice_total{change="move"}') == 1
    await tasks.close()


async def test_the_command_gets_its_variables_and_its_end_is_seen(tmp_path: Path) -> None:
    wrote = tmp_path / "wrote"
    await run_hook(f"sh -c 'echo $PLANNER_CHANGE >{wrote}'", {"PLANNER_CHANGE": "move"}, 60)
    assert wrote.read_text() == "move\n"
    for command, timeout_s, said in (
        ("sh -c 'exit 3'", 60, "code 3"),
        ("/nowhere/at/all", 60, "can't be started"),
        (f"{sys.executable} -c 'import signal; signal.pause()'", 0.01, "took longer"),
    ):
        with pytest.raises(TandemError, match=said):
            await run_hook(command, {}, timeout_s)


def test_an_address_that_is_none_or_is_there_twice_is_refused_by_name() -> None:
    assert PlannerSettings(admin_address="a:50051, http://b:50051").gateways == ("a:50051", "b:50051")
    for given, said in (("a:1,b", "'b' is not host:port"), ("a:0", "port of 1"), ("a:1,a:1", "a:1 is there twice")):
        with pytest.raises(ValidationError, match=said) as caught:
            PlannerSettings(admin_address=given)
        (line,) = PlannerSettings.explain(caught.value)
        assert line.startswith("setting admin_address (TANDEM_PLANNER_ADMIN_ADDRESS): ")


def test_thresholds_that_are_not_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="below high"):
        PlannerSettings(low=0.8, high=0.8)
    with pytest.raises(ValueError, match="at most full"):
        PlannerSettings(high=1.1)
