"""Sender and receiver as SGLang's scheduler uses them, over handles that the test moves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.room.events import Phase, Why
from tests.support.sglang import installed

installed.require()

from tandem.engine.sglang import backend, hooks  # noqa: E402 (SGLang warns when it is loaded)

pytestmark = pytest.mark.sglang
FAILED = Why(ErrorReason.LINK_LOST, "the link went")


def sender(manager):
    return backend.TandemKVSender(manager, "tandem:1", 5)


def receiver(manager):
    return backend.TandemKVReceiver(manager, "tandem:1", 5)


@pytest.mark.parametrize("phase", Phase)
def test_poll_is_the_phase_and_nothing_else(manager, phase):
    from sglang.srt.disaggregation.base.conn import KVPoll

    expected = {
        Phase.BOOTSTRAPPING: KVPoll.Bootstrapping,
        Phase.WAITING: KVPoll.WaitingForInput,
        Phase.TRANSFERRING: KVPoll.Transferring,
        Phase.SUCCESS: KVPoll.Success,
        Phase.FAILED: KVPoll.Failed,
    }[phase]
    begun, offered = sender(manager), receiver(manager)
    begun.init(1, 0)
    offered.send_metadata(np.arange(1), 0)
    for room in (begun, offered):
        room.handle.update(phase, None)
        assert room.poll() == expected


def test_a_room_that_fences_before_it_began_is_bootstrapping(manager):
    """SGLang's scheduler dies of any other state in its bootstrap and prealloc queues."""
    from sglang.srt.disaggregation.base.conn import KVPoll

    for room in (sender(manager), receiver(manager)):
        room.handle.update(Phase.TRANSFERRING, None)
        assert room.poll() == KVPoll.Bootstrapping
        room.handle.update(Phase.FAILED, FAILED)
        assert room.poll() == KVPoll.Failed


def test_chunks_go_out_in_order_and_the_last_carries_the_row(manager):
    room = sender(manager)
    room.init(5, 3)
    table = np.arange(10, dtype=np.int32)
    room.send(table[2:5], None, num_kv_tokens=3)
    room.send(table[5:7], [None, [np.array([8])]], num_kv_tokens=2)
    table[:] = 0
    (_, first, states, last, row, layers), (_, second, last_states, really_last, last_row, _) = (
        manager.rank.rooms.pushed
    )
    assert layers is None, "SGLang computes all of them before it sends"
    assert (first.tolist(), states, last, row) == ([2, 3, 4], [], False, None), "a copy, not SGLang's table"
    assert (second.tolist(), really_last, last_row) == ([5, 6], True, 3)
    assert last_states[0] is None
    assert last_states[1].tolist() == [8]


def test_pages_that_do_not_add_up_are_refused(manager):
    room = sender(manager)
    with pytest.raises(TandemError):
        room.send(np.arange(1), None)
    room.init(2, 0)
    with pytest.raises(TandemError, match="3 pages"):
        room.send(np.arange(3), None)
    with pytest.raises(TandemError, match="kept 1"):
        room.send(np.arange(1), [])


def test_last_chunk_is_sent_even_without_pages(manager):
    assert sender(manager).should_send_kv_chunk(0, True)
    assert not sender(manager).should_send_kv_chunk(0, False)


def test_failure_carries_its_reason(manager):
    from tandem.engine.sglang import tags

    room = sender(manager)
    room.handle.update(Phase.FAILED, FAILED)
    with pytest.raises(backend.KvRoomFailed) as error:
        room.failure_exception()
    assert tags.read(f"Prefill transfer failed with exception {error.value}") == FAILED
    assert not error.value.is_from_another_rank
    with pytest.raises(backend.KvRoomFailed) as error:
        receiver(manager).failure_exception()
    assert error.value.is_from_another_rank


def collective(states):
    """SGLang's collective poll as this rank sees it: other ranks' states are given, the smallest wins."""
    return lambda pollers, cp, tp: [min(p.poll(), other) for p, other in zip(pollers, states, strict=True)]


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch):
    """Reductions over a group of one."""
    monkeypatch.setattr("sglang.srt.disaggregation.utils.all_reduce_flags", lambda flags, group, op: flags)


def test_prefill_pages_are_held_until_this_rank_is_quiet_too(manager, one_rank):
    from sglang.srt.disaggregation.base.conn import KVPoll

    room, fine = sender(manager), sender(manager)
    room.init(2, 0)
    room.send(np.arange(2), [])
    room.handle.update(Phase.TRANSFERRING, None)
    fine.handle.update(Phase.WAITING, None)
    others = collective([KVPoll.Failed, KVPoll.Success])
    assert backend.poll_senders(others, [room, fine], None, None) == [KVPoll.Transferring, KVPoll.WaitingForInput]
    assert manager.rank.rooms.aborted == [(5, backend.OTHER_RANK)], "its own share is fenced"
    room.handle.update(Phase.FAILED, backend.OTHER_RANK)
    assert backend.poll_senders(others, [room, fine], None, None)[0] == KVPoll.Failed


def test_room_that_never_started_is_held_where_sglang_waits(manager, one_rank):
    from sglang.srt.disaggregation.base.conn import KVPoll

    room = sender(manager)
    assert backend.poll_senders(collective([KVPoll.Failed]), [room], None, None) == [KVPoll.Bootstrapping]


def test_decode_pages_are_safe_only_once_the_grant_is_fenced(manager):
    room = receiver(manager)
    assert manager.is_abort_release_safe(5, 1), "nothing was offered"
    room.send_metadata(np.array([4, 5], np.int32), 1, [], decode_prefix_len=0)
    assert manager.rank.rooms.reserved[0][1].tolist() == [4, 5]
    assert not manager.is_abort_release_safe(5, 1)
    room.ensure_abort_notified(force_arm=True)
    room.ensure_abort_notified(force_arm=True)
    assert room.abort_notified
    assert manager.rank.rooms.aborted == [(5, backend.OTHER_RANK)]
    assert not manager.is_abort_release_safe(5, 0), "an acknowledgement count is no proof"
    room.handle.update(Phase.FAILED, backend.OTHER_RANK)
    assert manager.is_abort_release_safe(5, 1)
    manager.clear_deferred_abort_state(5)
    room.clear()
    assert manager.receivers == {}


def test_room_that_ended_before_its_offer_is_safe(manager):
    room = receiver(manager)
    room.handle.update(Phase.FAILED, FAILED)
    room.send_metadata(np.array([4], np.int32), 1, [])
    assert manager.is_abort_release_safe(5, 1)


def test_nothing_is_offered_after_an_abort(manager):
    room = receiver(manager)
    room.abort()
    room.send_metadata(np.array([4], np.int32), 1, [])
    assert manager.rank.rooms.reserved == []


def test_every_change_of_a_room_rings_the_bell(manager):
    for room in (sender(manager), receiver(manager)):
        room.handle.update(Phase.WAITING, None)
        assert manager.wake.take()


class Request:
    def __init__(self, room):
        self.disagg_kv_sender = room


def test_aborted_prompt_waits_for_its_chunks(manager, monkeypatch):
    room = sender(manager)
    manager.settings = type("Settings", (), {"fence_ms": 1_000})
    waited = []
    monkeypatch.setattr(type(manager.wake), "wait_until", lambda self, done, ms: waited.append((done(), ms)) or True)
    hooks.quiet_request(None, Request(room))
    assert waited == [], "nothing was sent, nothing can be read"
    room.init(2, 0)
    room.send(np.arange(1), None)
    hooks.quiet_request(None, Request(room))
    assert waited == [(False, 2_000)]


def test_idle_scheduler_sleeps_until_a_room_changes(manager, monkeypatch):
    import zmq

    monkeypatch.setattr(hooks, "waiting_rooms", lambda scheduler: 0)
    manager.sleeper = None
    sleeper = SimpleNamespace(poller=zmq.Poller())
    queue = SimpleNamespace(kv_manager=manager)
    scheduler = SimpleNamespace(
        idle_sleeper=sleeper,
        disagg_prefill_bootstrap_queue=queue,
        tp_size=1,
        kv_events_publisher=SimpleNamespace(kv_event_publisher=None),
    )
    hooks.nap(None, scheduler)
    assert sleeper.poller.poll(0) == [], "nothing to wake up for"
    sender(manager).handle.update(Phase.WAITING, None)
    assert sleeper.poller.poll(0) == [(manager.wake.fd, zmq.POLLIN)]
    hooks.nap(None, scheduler)
    assert sleeper.poller.poll(0) == [], "the ring was taken"
