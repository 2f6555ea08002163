"""Rooms of a loaded cluster, by tandem.core's own machines: every one ends, once, on both sides."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from tandem.cli.__main__ import app
from tandem.cli.sim.sides import Machines
from tandem.cli.sim_serve.clients import Client
from tandem.cli.sim_serve.cluster import Cluster, ClusterPlan
from tandem.cli.sim_serve.costs import WorkerShape
from tandem.cli.sim_serve.jobs import Ask
from tandem.core.room import events as ev
from tandem.core.room.receiver import Receiver
from tandem.core.room.sender import Sender

CHUNKS = WorkerShape(chunk_tokens=200, cache_tokens=5000)
LOAD = [Ask(n * 0.004, ((n % 5, 160), (n, 240)), 1 + n % 30) for n in range(400)]


def test_every_room_ends_well_and_nothing_else_changes() -> None:
    without = Cluster(ClusterPlan(2, 3, shape=CHUNKS)).run(LOAD)
    run = Cluster(ClusterPlan(2, 3, shape=CHUNKS, rooms=Machines())).run(LOAD)
    assert run.rooms is not None
    assert sum(run.cached_tokens) > 0
    assert (run.rooms.opened, run.rooms.ended_well) == (400, 400)
    assert (run.rooms.ended_badly, run.rooms.not_ended, run.rooms.refused) == (0, 0, 0)
    assert run.rooms.steps > 12 * 400, "two chunks of most"
    assert (list(run.e2e_s), without.rooms) == (list(without.e2e_s), None)


def test_a_room_whose_deadline_is_over_ends_too() -> None:
    asks = [Ask(0.0, ((n, 1000),), 2, client=Client(timeout_s=0.1)) for n in range(40)]
    run = Cluster(ClusterPlan(shape=CHUNKS, rooms=Machines())).run(asks)
    assert run.rooms is not None
    assert (run.rooms.opened, run.rooms.not_ended) == (40, 0)
    assert 5 <= run.rooms.ended_well <= 15, "10 ms each"
    assert run.rooms.ended_badly == 40 - run.rooms.ended_well
    assert run.refused["deadline_exceeded"] >= run.rooms.ended_badly


class Deaf(Sender):
    """Does not hear that its KV has landed."""

    def step(self, event: ev.Input, now: float) -> list[ev.Effect]:
        return [] if isinstance(event, ev.LandedByPeer) else super().step(event, now)


class Trusting(Receiver):
    """Takes prefill's word for everything, and so ends before its KV is there."""

    def step(self, event: ev.Input, now: float) -> list[ev.Effect]:
        found = super().step(event, now)
        return [*found, ev.Ended(None)] if isinstance(event, ev.PagesReserved) else found


def test_a_side_that_does_not_end_is_found() -> None:
    run = Cluster(ClusterPlan(shape=CHUNKS, rooms=Machines(sender=Deaf))).run(LOAD[:20])
    assert run.rooms is not None
    assert run.rooms.not_ended == 20


def test_a_side_that_ends_twice_is_found() -> None:
    with pytest.raises(AssertionError, match="ends again"):
        Cluster(ClusterPlan(shape=CHUNKS, rooms=Machines(receiver=Trusting))).run(LOAD[:20])


@pytest.mark.parametrize(("sender", "code"), [(Sender, 0), (Deaf, 1)])
def test_the_command_says_so(monkeypatch: pytest.MonkeyPatch, sender: Any, code: int) -> None:
    monkeypatch.setattr("tandem.cli.sim.sides.Machines", lambda: Machines(sender=sender))
    said = CliRunner().invoke(app, ["sim", "serve", "--rooms", "--requests", "50"])
    assert said.exit_code == code, said.output
    assert f"rooms: 50 opened, {0 if code else 50} ended well on both sides" in said.output
