"""ClusterView: snapshots, deltas, restarts of the store, and who may get rooms."""

from __future__ import annotations

from tandem.core.cluster import ClusterView, Joined, LeaveReason, Left, differences
from tandem.core.ids import Incarnation, Role, WorkerId, WorkerLife
from tests.support.bootstrap.workers import worker

P0 = worker("p0", incarnation=10)
P1 = worker("p1", incarnation=11, models=("tiny", "big"))
D0 = worker("d0", Role.DECODE, incarnation=12)


def view(*workers, store=1, revision=5) -> ClusterView:
    return ClusterView().with_snapshot(store, revision, workers)


def test_a_snapshot_is_in_order_of_id():
    assert list(view(P1, D0, P0).workers) == ["d0", "p0", "p1"]


def test_a_delta_follows_only_the_revision_before_it_of_the_same_store():
    now = view(P0)
    assert now.follows(1, 6)
    assert not now.follows(1, 7)
    assert not now.follows(1, 5)
    assert not now.follows(2, 6)


def test_events_change_a_copy():
    before = view(P0)
    after = before.with_event(6, Joined(D0))
    assert set(before.workers) == {"p0"}
    assert set(after.workers) == {"p0", "d0"}
    assert after.revision == 6
    assert set(after.with_event(7, Left(P0.life, LeaveReason.EXPIRED)).workers) == {"d0"}


def test_left_of_an_older_life_removes_nobody():
    older = WorkerLife(WorkerId("p0"), Incarnation(9))
    assert view(P0).with_event(6, Left(older, LeaveReason.REPLACED)).workers == view(P0).workers


def test_a_snapshot_of_the_same_store_is_the_whole_truth():
    assert set(view(P0, P1).with_snapshot(1, 9, [P1]).workers) == {"p1"}


def test_workers_known_before_a_restart_of_the_store_are_carried_until_confirmed_or_dropped():
    after = view(P0, P1, D0).with_snapshot(2, 0, [])
    assert after.carried == {"p0", "p1", "d0"}
    assert set(after.workers) == {"p0", "p1", "d0"}
    confirmed = after.with_event(1, Joined(P0))
    assert confirmed.carried == {"p1", "d0"}
    assert set(confirmed.without_carried().workers) == {"p0"}
    assert set(confirmed.with_event(2, Left(P1.life, LeaveReason.DEREGISTERED)).workers) == {"p0", "d0"}


def test_carried_workers_survive_a_second_restart():
    assert set(view(P0).with_snapshot(2, 0, []).with_snapshot(3, 0, []).workers) == {"p0"}


def test_a_view_that_was_never_read_carries_nobody():
    assert ClusterView().with_snapshot(7, 3, [P0]).carried == frozenset()


def test_emptied():
    assert not view(P0).with_snapshot(2, 0, []).emptied().workers


def test_routable_leaves_out_other_roles_other_models_and_draining_workers():
    draining = worker("p2", incarnation=13, draining=True)
    cluster = view(P0, P1, draining, D0)
    assert [info.worker_id for info in cluster.routable(Role.PREFILL, "tiny")] == ["p0", "p1"]
    assert [info.worker_id for info in cluster.routable(Role.PREFILL, "big")] == ["p1"]
    assert cluster.routable(Role.DECODE, "big") == ()
    assert len(cluster.of_role(Role.PREFILL)) == 3


def test_a_model_needs_a_worker_of_each_role():
    assert view(P0, P1, D0).models == ("tiny",)
    assert view(P0, P1).models == ()


def test_find_wants_this_very_life():
    assert view(P0).find(P0.life) == P0
    assert view(P0).find(WorkerLife(WorkerId("p0"), Incarnation(9))) is None


def test_differences():
    new_life = worker("p0", incarnation=20)
    changed = worker("p1", incarnation=11, models=("tiny", "big"), draining=True)
    found = differences(view(P0, P1), view(new_life, changed, D0))
    assert found.joined == (D0, new_life)
    assert found.left == (P0.life,)
    assert found.changed == (changed,)
    same = differences(view(P0), view(P0))
    assert (same.joined, same.left, same.changed) == ((), (), ())
