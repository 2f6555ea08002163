"""How full workers are, by what they say."""

from __future__ import annotations

import pytest

from tandem.core.ids import Role, WorkerId
from tandem.core.planner.loads import Comfort, WorkerSight, leaver, load_of, snapshot


def worker(role: Role, name: str = "one", **facts: int) -> WorkerSight:
    """One of 10 places."""
    return WorkerSight(WorkerId(name), role, 10, **facts)


@pytest.mark.parametrize(("running", "waiting", "load"), [(0, 0, 0.0), (1, 0, 1.0), (0, 1, 1.0), (1, 7, 1.0)])
def test_prefill_with_any_prompt_is_busy(running: int, waiting: int, load: float) -> None:
    assert load_of(worker(Role.PREFILL, running=running, waiting=waiting), Comfort()) == load


def test_decode_is_as_full_as_its_batch_or_its_pages_and_what_waits_is_not_its() -> None:
    assert load_of(worker(Role.DECODE, running=3, waiting=9, pages=100, pages_held=20), Comfort()) == 0.3
    assert load_of(worker(Role.DECODE, running=3, pages=100, pages_held=60), Comfort()) == 0.6
    assert load_of(worker(Role.DECODE, running=3), Comfort(sequences=5)) == 0.6
    assert load_of(worker(Role.UNIFIED, running=3, waiting=9), Comfort()) == 1.2


def test_who_drains_is_not_there() -> None:
    seen = snapshot(1.0, [worker(Role.DECODE, running=5), worker(Role.DECODE, draining=True)], Comfort())
    assert (seen.roles[Role.DECODE].workers, seen.roles[Role.DECODE].pressure) == (1, 0.5)
    assert set(seen.roles) == {Role.DECODE}


def test_what_waits_with_workers_is_the_backlog_of_the_role_that_it_waits_for() -> None:
    """Decode has a sequence from the beginning on; while prefill has it too, it is prefill's."""
    prefills = [worker(Role.PREFILL, running=1, waiting=6), worker(Role.PREFILL)]
    decodes = [worker(Role.DECODE, running=10, waiting=9), worker(Role.DECODE, running=10, waiting=2)]
    roles = snapshot(1.0, [*prefills, *decodes], Comfort()).roles
    assert roles[Role.PREFILL].backlog == 6
    assert roles[Role.DECODE].backlog == 31 - 7 - 20
    assert snapshot(1.0, [*prefills, decodes[0], worker(Role.DECODE)], Comfort()).roles[Role.DECODE].backlog == 0


def test_the_highest_number_leaves() -> None:
    names = ["decode-9", "decode-10", "decode-2"]
    sights = [worker(Role.DECODE, name) for name in names] + [worker(Role.PREFILL, "prefill-11")]
    assert leaver(sights, Role.DECODE) == "decode-10"
    assert leaver([*sights, worker(Role.DECODE, "decode-11", draining=True)], Role.DECODE) == "decode-10"
    assert leaver(sights, Role.UNIFIED) is None
