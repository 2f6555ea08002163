"""The registry: leases, lives, revisions and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.core.cluster import Joined, LeaveReason, Left, RankEndpoint
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Incarnation, RankId, Role, WorkerId, WorkerLife
from tandem.core.layout import PoolLayout
from tandem.core.registry import Change, Registry, RegistryLimits
from tandem.core.version import CURRENT, Protocol
from tests.support.bootstrap.workers import LAYOUT, instance, worker

WALL_MS = 1_700_000_000_000
LIMITS = RegistryLimits(lease_ttl_ms=3000, grace_ms=500, max_workers=4)


class Fixture:
    """A registry and what it emitted."""

    def __init__(self, limits: RegistryLimits = LIMITS) -> None:
        self.changes: list[Change] = []
        self.registry = Registry(limits, self.changes.append)

    def register(self, info=None, number=1, now=0.0, wall_ms=WALL_MS) -> WorkerLife:
        info = info or worker()
        return WorkerLife(info.worker_id, self.registry.register(info, instance(number), now, wall_ms))

    def refusal(self, reason: ErrorReason, info=None, number=1, **times) -> TandemError:
        with pytest.raises(TandemError) as caught:
            self.register(info, number, **times)
        assert caught.value.reason is reason
        assert self.changes == [] or self.changes[-1].revision == self.registry.revision
        return caught.value


@pytest.fixture
def fx() -> Fixture:
    return Fixture()


def test_a_first_life_gets_the_wall_clock_as_incarnation_and_joins(fx):
    life = fx.register()
    assert life.incarnation == WALL_MS
    assert fx.changes == [Change(1, Joined(worker(incarnation=WALL_MS)))]
    assert fx.registry.workers() == (worker(incarnation=WALL_MS),)


def test_incarnations_rise_even_if_the_wall_clock_goes_back(fx):
    first = fx.register(worker("p0"), 1, wall_ms=WALL_MS)
    second = fx.register(worker("p1"), 2, wall_ms=5)
    assert second.incarnation == first.incarnation + 1


def test_the_same_instance_keeps_its_life_and_makes_no_change(fx):
    life = fx.register()
    assert fx.register(wall_ms=WALL_MS + 9) == life
    assert fx.register(worker(incarnation=life.incarnation)) == life
    assert len(fx.changes) == 1


def test_the_same_instance_with_other_facts_is_a_change_of_the_same_life(fx):
    life = fx.register()
    fx.register(worker(max_running=9))
    assert fx.changes[1] == Change(2, Joined(worker(incarnation=life.incarnation, max_running=9)))


def test_a_new_instance_replaces_the_old_life_at_once(fx):
    old = fx.register(number=1)
    new = fx.register(number=2)
    assert new.incarnation > old.incarnation
    assert [change.event for change in fx.changes[1:]] == [
        Left(old, LeaveReason.REPLACED),
        Joined(worker(incarnation=new.incarnation)),
    ]
    assert [change.revision for change in fx.changes] == [1, 2, 3]


def test_nothing_of_a_replaced_life_is_accepted(fx):
    old, new = fx.register(number=1), fx.register(number=2)
    for call in (lambda: fx.registry.heartbeat(old, 1.0), lambda: fx.registry.deregister(old)):
        with pytest.raises(TandemError) as caught:
            call()
        assert caught.value.reason is ErrorReason.STALE_INCARNATION
        assert str(old.incarnation) in caught.value.message
        assert str(new.incarnation) in caught.value.message
    fx.refusal(ErrorReason.STALE_INCARNATION, worker(incarnation=old.incarnation), number=1)
    # Its very first Register, delayed on the way, carries no incarnation yet.
    fx.refusal(ErrorReason.STALE_INCARNATION, worker(), number=1)
    assert fx.registry.workers()[0].life == new


def test_a_replaced_life_stays_refused_after_its_successor_has_left(fx):
    old, new = fx.register(number=1), fx.register(number=2)
    fx.registry.deregister(new)
    fx.refusal(ErrorReason.STALE_INCARNATION, worker(incarnation=old.incarnation), number=1)


def test_after_a_restart_a_worker_keeps_the_incarnation_it_brings(fx):
    life = fx.register(worker(incarnation=WALL_MS - 777))
    assert life.incarnation == WALL_MS - 777
    assert fx.registry.heartbeat(life, 1.0) is False


def test_after_a_restart_the_older_of_two_lives_is_refused_whoever_comes_first(fx):
    fx.register(worker(incarnation=20), number=2)
    fx.refusal(ErrorReason.STALE_INCARNATION, worker(incarnation=10), number=1)
    other = Fixture()
    other.register(worker(incarnation=10), number=1)
    assert other.register(worker(incarnation=20), number=2).incarnation == 20
    assert other.changes[1].event == Left(WorkerLife(WorkerId("p0"), Incarnation(10)), LeaveReason.REPLACED)


def test_a_new_life_is_newer_than_one_that_a_worker_brought_along(fx):
    fx.register(worker(incarnation=WALL_MS + 50), number=1)
    assert fx.register(worker(), number=2).incarnation == WALL_MS + 51


def test_two_instances_cannot_share_an_incarnation(fx):
    fx.register(worker(incarnation=20), number=1)
    fx.refusal(ErrorReason.STALE_INCARNATION, worker(incarnation=20), number=2)


def test_a_lease_ends_after_its_ttl_and_the_grace(fx):
    life = fx.register(now=10.0)
    assert fx.registry.next_deadline() == 13.0
    fx.registry.expire(13.499)
    assert len(fx.changes) == 1
    fx.registry.expire(13.5)
    assert fx.changes[1] == Change(2, Left(life, LeaveReason.EXPIRED))
    assert fx.registry.next_deadline() is None


def test_a_heartbeat_moves_the_deadline_even_within_the_grace(fx):
    life = fx.register(now=10.0)
    fx.registry.heartbeat(life, 13.4)
    assert fx.registry.next_deadline() == 16.4
    fx.registry.expire(13.9)
    assert len(fx.changes) == 1


def test_the_next_deadline_is_the_earliest(fx):
    fx.register(worker("p0"), 1, now=10.0)
    fx.register(worker("p1"), 2, now=9.0)
    assert fx.registry.next_deadline() == 12.0
    fx.registry.expire(12.6)
    assert [info.worker_id for info in fx.registry.workers()] == ["p0"]


def test_an_expired_worker_must_register_again_and_keeps_its_life(fx):
    life = fx.register(now=0.0)
    fx.registry.expire(100.0)
    with pytest.raises(TandemError) as caught:
        fx.registry.heartbeat(life, 101.0)
    assert caught.value.reason is ErrorReason.NOT_REGISTERED
    assert fx.register(worker(incarnation=life.incarnation)) == life


def test_deregister_is_idempotent(fx):
    life = fx.register()
    fx.registry.deregister(life)
    fx.registry.deregister(life)
    assert [change.event for change in fx.changes[1:]] == [Left(life, LeaveReason.DEREGISTERED)]


def test_drain_and_undrain_are_changes_once(fx):
    life = fx.register()
    fx.registry.set_draining(life.worker_id, True)
    fx.registry.set_draining(life.worker_id, True)
    assert fx.registry.heartbeat(life, 1.0) is True
    fx.registry.set_draining(life.worker_id, False)
    assert [change.event.info.draining for change in fx.changes] == [False, True, False]


def test_draining_outlives_another_register_and_a_restart_but_not_the_life(fx):
    life = fx.register()
    fx.registry.set_draining(life.worker_id, True)
    fx.register()
    assert fx.registry.workers()[0].draining
    restarted = Fixture()
    restarted.register(worker(incarnation=life.incarnation, draining=True))
    assert restarted.registry.workers()[0].draining
    restarted.register(worker(draining=True), number=2)
    assert not restarted.registry.workers()[0].draining


def test_draining_an_unknown_worker(fx):
    with pytest.raises(TandemError) as caught:
        fx.registry.set_draining(WorkerId("nobody"), True)
    assert caught.value.reason is ErrorReason.UNKNOWN_WORKER
    assert "nobody" in caught.value.message


def test_too_many_workers(fx):
    for number in range(4):
        fx.register(worker(f"p{number}"), number)
    assert "4 workers" in fx.refusal(ErrorReason.OVERLOADED, worker("p9"), 9).message
    fx.register(worker("p0"), 77)  # a new life of a worker that is here needs no new place


def test_the_past_is_bounded_and_never_forgets_a_registered_worker():
    fx = Fixture(RegistryLimits(max_workers=2))
    stays = fx.register(worker("stays"), 1)
    for number in range(50):
        fx.registry.deregister(fx.register(worker(f"w{number}"), number + 2))
    assert len(fx.registry._past) <= 9
    assert fx.registry.heartbeat(stays, 1.0) is False
    fx.refusal(ErrorReason.STALE_INCARNATION, worker("stays", incarnation=5), 1)


def test_another_protocol_major_is_refused_with_both_versions(fx):
    message = fx.refusal(ErrorReason.VERSION_MISMATCH, worker(protocol=Protocol(7, 3))).message
    assert "7.3" in message
    assert str(CURRENT) in message


def test_a_higher_minor_is_accepted(fx):
    fx.register(worker(protocol=Protocol(1, 99)))


def test_a_layout_that_does_not_fit_is_refused_with_both_values(fx):
    fx.register(worker("p0"), 1)
    decode = worker("d0", Role.DECODE, layout=replace(LAYOUT, page_size=64, dtype="bfloat16"))
    message = fx.refusal(ErrorReason.LAYOUT_MISMATCH, decode, 2).message
    for part in ("d0", "p0", "page_size: 64 / 16", "dtype: bfloat16 / float32"):
        assert part in message


@pytest.mark.parametrize(
    "changes",
    [
        {"role": Role.PREFILL, "ranks": worker().ranks},
        {"models": ("other",)},
        {"layout": replace(LAYOUT, pools=tuple(replace(pool, entries=7) for pool in LAYOUT.pools))},
    ],
    ids=["same role", "no common model", "only entries differ"],
)
def test_layouts_that_need_not_be_equal(fx, changes):
    fx.register(worker("p0"), 1)
    odd = replace(LAYOUT, page_size=64)
    fx.register(replace(worker("d0", Role.DECODE, layout=odd), **{"layout": odd} | changes), 2)
    assert len(fx.registry.workers()) == 2


def test_a_worker_may_come_back_in_another_role_with_another_layout(fx):
    fx.register(worker("w", Role.PREFILL), 1)
    fx.register(worker("w", Role.DECODE, layout=replace(LAYOUT, page_size=64)), 2)


TP2 = replace(LAYOUT, tp_size=2)
BAD_FIELDS = [
    ("worker.worker_id", {"life": WorkerLife(WorkerId("a b"), Incarnation(0))}),
    ("worker.worker_id", {"life": WorkerLife(WorkerId(""), Incarnation(0))}),
    ("worker.worker_id", {"life": WorkerLife(WorkerId("x" * 129), Incarnation(0))}),
    ("worker.incarnation", {"life": WorkerLife(WorkerId("a"), Incarnation(2**62 + 1))}),
    ("models", {"models": ()}),
    ("models", {"models": ("",)}),
    ("models", {"models": ("a", "a")}),
    ("models", {"models": tuple(f"m{n}" for n in range(65))}),
    ("address", {"address": ""}),
    ("address", {"address": "127.0.0.1"}),
    ("address", {"address": "127.0.0.1:0"}),
    ("address", {"address": "127.0.0.1:65536"}),
    ("address", {"address": "http://host:80"}),
    ("layout.page_size", {"layout": replace(LAYOUT, page_size=0)}),
    ("layout.page_size", {"layout": replace(LAYOUT, page_size=65537)}),
    ("layout.dtype", {"layout": replace(LAYOUT, dtype="")}),
    ("layout.layers", {"layout": replace(LAYOUT, layers=4097)}),
    ("layout.memory_order", {"layout": replace(LAYOUT, memory_order="")}),
    ("layout.tp_size", {"layout": replace(LAYOUT, tp_size=0)}),
    ("layout.pp_size", {"layout": replace(LAYOUT, pp_size=1025)}),
    ("layout.pools", {"layout": replace(LAYOUT, pools=())}),
    ("layout.pools.name", {"layout": replace(LAYOUT, pools=(PoolLayout("odd", (1,), 1),))}),
    ("layout.pools.name", {"layout": replace(LAYOUT, pools=(PoolLayout("kv", (1,), 1),) * 2)}),
    ("layout.pools.entries", {"layout": replace(LAYOUT, pools=(PoolLayout("kv", (1,), 0),))}),
    ("layout.pools.item_bytes", {"layout": replace(LAYOUT, pools=(PoolLayout("kv", (), 1),))}),
    ("layout.pools.item_bytes", {"layout": replace(LAYOUT, pools=(PoolLayout("kv", (0,), 1),))}),
    ("ranks", {"ranks": ()}),
    ("ranks", {"layout": TP2}),
    ("ranks", {"layout": TP2, "ranks": (RankEndpoint(RankId(tp=1), "h:1"),) * 2}),
    ("ranks", {"ranks": (RankEndpoint(RankId(dp=1), "h:1"),)}),
    ("ranks.kv_link_address", {"ranks": (RankEndpoint(RankId(), ""),)}),
    ("ranks.kv_link_address", {"role": Role.DECODE}),
    ("context_tokens", {"context_tokens": 0}),
    ("max_running", {"max_running": 2**31}),
    ("total_pages", {"total_pages": 0}),
    ("tokenizer_path", {"tokenizer_path": "x" * 4097}),
    ("tokenizer_path", {"tokenizer_path": "a\nb"}),
]


@pytest.mark.parametrize(("field", "changes"), BAD_FIELDS)
def test_a_bad_field_is_named(fx, field, changes):
    error = fx.refusal(ErrorReason.INVALID_ARGUMENT, replace(worker(), **changes))
    assert error.field == field
    assert error.message.startswith(f"{field} is ")
    assert "allowed: " in error.message
    assert fx.registry.workers() == ()


def test_an_instance_id_of_another_length(fx):
    with pytest.raises(TandemError) as caught:
        fx.registry.register(worker(), b"short", 0.0, WALL_MS)
    assert caught.value.field == "instance_id"


GOOD = [
    {"address": "[::1]:80"},
    {"address": "worker-3.example:65535"},
    {"layout": TP2, "ranks": tuple(RankEndpoint(RankId(tp=tp), f"h:{tp + 1}") for tp in (1, 0))},
    {"ranks": tuple(RankEndpoint(RankId(dp=dp), f"h:{dp + 1}") for dp in range(3))},
    {"models": ("org/model-7B", "ein Modell")},
    {"layout": replace(LAYOUT, pools=(*LAYOUT.pools, PoolLayout("state:swa", (8,), 4)))},
]


@pytest.mark.parametrize("changes", GOOD)
def test_what_is_allowed(fx, changes):
    fx.register(replace(worker(), **changes))


EXPECTED = {ErrorReason.STALE_INCARNATION, ErrorReason.NOT_REGISTERED, ErrorReason.UNKNOWN_WORKER}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["register", "again", "heartbeat", "deregister", "drain", "expire"]),
            st.integers(0, 2),
            st.integers(0, 3),
            st.floats(0, 3),
        ),
        max_size=60,
    )
)
def test_whatever_happens_the_changes_rebuild_the_registry(steps):
    """Revisions have no gap, incarnations of a worker only rise, and replaying the changes gives the workers."""
    fx = Fixture()
    lives: dict[tuple[int, int], WorkerLife] = {}
    now = 0.0
    for what, who, number, wait in steps:
        now += wait
        life = lives.get((who, number), WorkerLife(WorkerId(f"w{who}"), Incarnation(3)))
        try:
            match what:
                case "register":
                    lives[who, number] = fx.register(worker(f"w{who}"), 10 * who + number, now=now)
                case "again":
                    fx.register(replace(worker(), life=life), 10 * who + number, now=now)
                case "heartbeat":
                    fx.registry.heartbeat(life, now)
                case "deregister":
                    fx.registry.deregister(life)
                case "drain":
                    fx.registry.set_draining(life.worker_id, number % 2 == 0)
                case "expire":
                    fx.registry.expire(now)
        except TandemError as error:
            if error.reason not in EXPECTED:
                raise

    assert [change.revision for change in fx.changes] == list(range(1, len(fx.changes) + 1))
    replay = {}
    newest: dict[str, int] = {}
    for change in fx.changes:
        if isinstance(change.event, Joined):
            info = change.event.info
            assert info.life.incarnation >= newest.get(info.worker_id, 0)
            newest[info.worker_id] = info.life.incarnation
            replay[info.worker_id] = info
        else:
            assert replay.pop(change.event.life.worker_id).life == change.event.life
    assert tuple(replay[name] for name in sorted(replay)) == fx.registry.workers()
