"""Whole clusters on a virtual clock: no invariant breaks, and each would be seen to if its protection were missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from tandem.cli.__main__ import app
from tandem.cli.sim import story
from tandem.cli.sim.campaign import new_seed, run_seeds
from tandem.cli.sim.checks import Invariant, ViolationError
from tandem.cli.sim.landing import Mover, Provider
from tandem.cli.sim.memory import Pool
from tandem.cli.sim.sides import DecodeSide, Machines
from tandem.cli.sim.weather import FAULTS
from tandem.cli.sim.world import Plan
from tandem.core.errors import TandemError
from tandem.core.ids import RoomId
from tandem.core.room import events as ev
from tandem.core.room.receiver import Receiver, ReceiverState
from tandem.core.room.sender import Sender, SenderState
from tandem.rpc.exits import ExitCode
from tests.support.settings import environment

ROOMS = 20_000
PLANTED_SEEDS = 2_000
HUNTED_ROOMS = 100 * PLANTED_SEEDS
"""Where a hunt for a planted bug gives up; a seed has some 86 rooms."""
OUTCOMES = {
    "answered",
    "answered after a retry",
    "error DEADLINE_EXCEEDED",
    "error CANCELLED",
    "error LINK_LOST",
    "error TRANSFER_FAILED",
    "error POOL_EXHAUSTED",
    "error PEER_LOST",
    "error CHECKSUM_MISMATCH",
    "error STALE_INCARNATION",
}


def test_no_invariant_breaks_under_any_fault() -> None:
    campaign = run_seeds(new_seed(), ROOMS)
    print(campaign.report())
    assert campaign.violation is None, campaign.report()
    assert campaign.rooms >= ROOMS
    assert set(campaign.providers) == {provider.value for provider in Provider}
    assert {name for name, count in campaign.faults.items() if count} == set(FAULTS), "a kind of fault never happened"
    assert set(campaign.outcomes) >= OUTCOMES, "a kind of outcome never showed"
    assert campaign.not_moved > 0.05 * ROOMS, "hardly a prompt began as one that decode held"


def test_without_faults_requests_are_answered() -> None:
    campaign = run_seeds(new_seed(), 2_000, plan=lambda seed: Plan(seed, without=frozenset(FAULTS)))
    assert campaign.violation is None, campaign.report()
    answered = campaign.outcomes["answered"] + campaign.outcomes["answered after a retry"]
    assert answered >= 0.95 * campaign.outcomes.total(), campaign.report()
    short_of_pages = {"error POOL_EXHAUSTED", "error DEADLINE_EXCEEDED"}
    assert set(campaign.outcomes) <= {"answered", "answered after a retry", *short_of_pages}, campaign.report()


def test_the_same_seed_is_the_same_run_in_every_process() -> None:
    def printed(seed: int, hash_seed: str) -> str:
        command = (sys.executable, "-m", "tandem.cli", "sim", "run", "--seed", str(seed), "--trace")
        done = subprocess.run(
            command, env=environment(PYTHONHASHSEED=hash_seed), capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    assert "fingerprint" in printed(7, "1")
    assert printed(7, "1") == printed(7, "2") != printed(8, "1")


# --- planted bugs: each leaves out what protects one invariant -------------------------------------------------------


class SenderThatDoesNotWaitForItsReads(Sender):
    """Fails at once, and so gives its pages back while a peer reads them."""

    transitions: ClassVar[Mapping[Any, Any]] = {
        **Sender.transitions,
        (SenderState.PUSHING, ev.Broken): frozenset({SenderState.FAILED}),
        (SenderState.PUSHING, ev.PeerAborted): frozenset({SenderState.FAILED}),
    }

    def _fail(self, event: Any, now: float) -> Any:
        target, effects = Sender.handlers[type(event)](self, event, now)
        return (SenderState.FAILED, [ev.Ended(event.why)]) if self.state is SenderState.PUSHING else (target, effects)

    handlers: ClassVar[Mapping[Any, Any]] = {**Sender.handlers, ev.Broken: _fail, ev.PeerAborted: _fail}


class ReceiverThatDoesNotFence(Receiver):
    """Fails at once, and so gives pages back that a peer still writes."""

    transitions: ClassVar[Mapping[Any, Any]] = {
        **Receiver.transitions,
        (ReceiverState.RECEIVING, ev.Broken): frozenset({ReceiverState.FAILED}),
        (ReceiverState.RECEIVING, ev.PeerAborted): frozenset({ReceiverState.FAILED}),
    }

    def _fail(self, event: Any, now: float) -> Any:
        target, effects = Receiver.handlers[type(event)](self, event, now)
        failed = self.state is ReceiverState.RECEIVING
        return (ReceiverState.FAILED, [ev.Ended(event.why)]) if failed else (target, effects)

    handlers: ClassVar[Mapping[Any, Any]] = {**Receiver.handlers, ev.Broken: _fail, ev.PeerAborted: _fail}


class MoverThatTakesAnyRange(Mover):
    """Does not hold a range against its grant."""

    enforces = False


class SenderThatIsDoneWhenItHasSent(Sender):
    """Takes its own last word for the receiver's."""

    transitions: ClassVar[Mapping[Any, Any]] = {
        **Sender.transitions,
        (SenderState.PUSHING, ev.ChunkMoved): frozenset({SenderState.PUSHING, SenderState.SUCCEEDED}),
    }

    def _moved(self, event: Any, now: float) -> Any:
        target, effects = Sender.handlers[ev.ChunkMoved](self, event, now)
        if target is SenderState.COMPLETED:
            return SenderState.SUCCEEDED, [*effects, ev.Ended(None)]
        return target, effects

    handlers: ClassVar[Mapping[Any, Any]] = {**Sender.handlers, ev.ChunkMoved: _moved}


class ReceiverWithoutDeadline(Receiver):
    """Lets time pass."""

    handlers: ClassVar[Mapping[Any, Any]] = {**Receiver.handlers, ev.Tick: lambda self, event, now: (self.state, [])}


class ReceiverThatEndsAgain(Receiver):
    """Lets what comes after its end change it."""

    transitions: ClassVar[Mapping[Any, Any]] = {
        **Receiver.transitions,
        (ReceiverState.SUCCEEDED, ev.Tick): frozenset({ReceiverState.FAILED}),
    }

    def _tick(self, event: Any, now: float) -> Any:
        if self.state is ReceiverState.SUCCEEDED:
            return ReceiverState.FAILED, [ev.Ended(None)]
        return Receiver.handlers[ev.Tick](self, event, now)

    handlers: ClassVar[Mapping[Any, Any]] = {**Receiver.handlers, ev.Tick: _tick}


class ReceiverOffItsTable(Receiver):
    """Makes a move that its table does not have."""

    transitions: ClassVar[Mapping[Any, Any]] = {
        **Receiver.transitions,
        (ReceiverState.OFFERED, ev.ChunkSeen): frozenset({ReceiverState.OFFERED}),
    }


class ReceiverThatTrusts(Receiver):
    """Compares no checksum."""

    def _claimed(self, event: Any, now: float) -> Any:
        return Receiver.handlers[ev.ChunkClaimed](self, replace(event, checksum=None), now)

    handlers: ClassVar[Mapping[Any, Any]] = {**Receiver.handlers, ev.ChunkClaimed: _claimed}


@dataclass(frozen=True)
class Planted:
    """What is changed, and what must be found."""

    invariant: Invariant
    text: str
    machines: Machines = field(default_factory=Machines)
    mover: type[Mover] = Mover


PLANTED = {
    "a sender that does not wait for its reads": Planted(
        Invariant.ONE_WRITER, "is read for a room", Machines(sender=SenderThatDoesNotWaitForItsReads)
    ),
    "a receiver that does not fence": Planted(
        Invariant.QUIET_ABORT, "which has ended", Machines(receiver=ReceiverThatDoesNotFence)
    ),
    "a range that nobody checks": Planted(Invariant.INSIDE_GRANT, "writes page", mover=MoverThatTakesAnyRange),
    "a sender that is done when it has sent": Planted(
        Invariant.ONE_END, "decode did not", Machines(sender=SenderThatIsDoneWhenItHasSent)
    ),
    "a receiver without deadline": Planted(Invariant.ONE_END, "on decode-", Machines(receiver=ReceiverWithoutDeadline)),
    "a receiver that ends again": Planted(
        Invariant.ONE_END, "ends again on decode-", Machines(receiver=ReceiverThatEndsAgain)
    ),
    "a receiver off its table": Planted(
        Invariant.NO_SURPRISE, "is not in the table", Machines(receiver=ReceiverOffItsTable)
    ),
    "a receiver that trusts": Planted(
        Invariant.TRUE_TOKENS, "was answered from", Machines(receiver=ReceiverThatTrusts)
    ),
}


@pytest.mark.parametrize("provider", list(Provider))
@pytest.mark.parametrize("name", list(PLANTED))
def test_a_planted_bug_is_found(name: str, provider: Provider) -> None:
    planted = PLANTED[name]

    def plan(seed: int) -> Plan:
        return Plan(seed, provider=provider, machines=planted.machines, mover=planted.mover)

    campaign = run_seeds(1, HUNTED_ROOMS, plan=plan)  # it ends when the bug is found
    assert campaign.violation is not None
    assert campaign.violation.invariant is planted.invariant, campaign.report()
    assert planted.text in str(campaign.violation)
    assert campaign.seeds <= PLANTED_SEEDS
    assert f"again: tandem sim run --seed {campaign.last_seed}" in campaign.report()


def test_a_page_that_is_given_out_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = Pool.reserve

    def reserve_and_forget(pool: Pool, room: RoomId, count: int) -> tuple[int, ...] | None:
        pages = reserve(pool, room, count)
        if pages is not None and count > 1:
            pool._free.append(pages[0])
        return pages

    monkeypatch.setattr(Pool, "reserve", reserve_and_forget)
    campaign = run_seeds(1, HUNTED_ROOMS)
    assert campaign.violation is not None
    assert campaign.violation.invariant is Invariant.ONE_WRITER
    assert campaign.seeds <= PLANTED_SEEDS


def test_a_kept_page_that_is_given_out_while_a_room_reads_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pool, "idle", lambda pool: list(pool._kept))
    campaign = run_seeds(1, HUNTED_ROOMS)
    assert campaign.violation is not None
    assert campaign.violation.invariant in (Invariant.ONE_WRITER, Invariant.TRUE_TOKENS), campaign.report()
    assert campaign.seeds <= PLANTED_SEEDS


def test_pages_that_are_kept_of_a_room_that_failed_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecodeSide, "may_keep", lambda side, why: True)
    campaign = run_seeds(1, HUNTED_ROOMS)
    assert campaign.violation is not None
    assert campaign.violation.invariant in (Invariant.ONE_WRITER, Invariant.TRUE_TOKENS), campaign.report()
    assert campaign.seeds <= PLANTED_SEEDS


def test_what_breaks_is_told_with_as_little_as_it_needs() -> None:
    machines = Machines(receiver=ReceiverThatTrusts)
    campaign = run_seeds(1, HUNTED_ROOMS, plan=lambda seed: Plan(seed, machines=machines))
    found = story.tell(Plan(campaign.last_seed, machines=machines))
    assert found is not None
    short = story.shrink(found)
    assert short.violation.invariant is Invariant.TRUE_TOKENS
    assert short.plan.requests <= 2 < found.plan.requests
    assert set(FAULTS) - short.plan.without == {"corrupt"}
    again = story.tell(short.plan)
    assert again is not None
    assert again.trace == short.trace


def test_a_story_is_run_again_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "story.json"
    plan = Plan(3, requests=2, provider=Provider.CMA, without=frozenset({"crashes"}))
    told = story.Story(plan, ViolationError(Invariant.ONE_END, "as an example"), ("what happened",))
    path.write_text(json.dumps(told.document()))
    assert story.read(path) == plan
    for wrong in ("{}", "nonsense", json.dumps({**told.document(), "without": ["rain"]})):
        path.write_text(wrong)
        with pytest.raises(TandemError, match="is no story"):
            story.read(path)


@pytest.fixture
def rows_are_never_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = DecodeSide.end

    def forget(side: DecodeSide, why: ev.Why | None) -> None:
        rows, side.life.rows = side.life.rows, Pool("nobody's rows", 0)
        given_back(side, why)
        side.life.rows = rows

    monkeypatch.setattr(DecodeSide, "end", forget)


@pytest.mark.usefixtures("rows_are_never_given_back")
def test_a_row_that_is_never_given_back_is_found() -> None:
    campaign = run_seeds(1, HUNTED_ROOMS)
    assert campaign.violation is not None
    assert campaign.violation.invariant is Invariant.POOLS_BALANCE
    assert campaign.seeds <= PLANTED_SEEDS


@pytest.mark.usefixtures("rows_are_never_given_back")
def test_the_command_tells_what_broke_and_how_to_see_it_again(tmp_path: Path) -> None:
    path, run = tmp_path / "story.json", CliRunner().invoke
    broken = run(app, ["sim", "run", "--seed", "1", "--rooms", "100000", "--shrink", str(path)])
    assert broken.exit_code == ExitCode.FAILED
    assert "again: tandem sim run --seed 1" in broken.output
    told = run(app, ["sim", "tell", str(path)])
    assert told.exit_code == ExitCode.FAILED
    assert "I6 is broken" in told.output
