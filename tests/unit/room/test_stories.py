"""Stories of a room: a sender and a receiver against each other, in the orders that a network can make of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tandem.core.errors import ErrorReason
from tandem.core.ids import ChunkIndex, GrantId
from tandem.core.room import events as ev
from tandem.core.room.receiver import Receiver, ReceiverState
from tandem.core.room.sender import Sender, SenderState

G = GrantId(9)


def _offered(granted_bytes: int) -> Receiver:
    receiver = Receiver(deadline=10.0)
    receiver.step(ev.LinkUp(), 0.0)
    receiver.step(ev.PagesReserved(G, granted_bytes), 0.0)
    return receiver


def test_chunks_before_the_grant_wait_for_it() -> None:
    sender = Sender(deadline=10.0)
    assert sender.step(ev.ChunkReady(ChunkIndex(0), last=False), 0.0) == []
    assert sender.step(ev.ChunkReady(ChunkIndex(1), last=True), 0.0) == []
    started = sender.step(ev.Offer(G), 0.0)
    assert started == [ev.StartTransfer(ChunkIndex(0)), ev.StartTransfer(ChunkIndex(1))]


def test_complete_counts_every_chunk_once() -> None:
    sender = Sender(deadline=10.0)
    sender.step(ev.Offer(G), 0.0)
    for index in range(3):
        sender.step(ev.ChunkReady(ChunkIndex(index), last=index == 2), 0.0)
    assert sender.step(ev.ChunkMoved(ChunkIndex(2), 30, None), 0.0) == [ev.SendChunkDone(ChunkIndex(2), 30, None)]
    sender.step(ev.ChunkMoved(ChunkIndex(0), 10, None), 0.0)
    effects = sender.step(ev.ChunkMoved(ChunkIndex(1), 20, None), 0.0)
    assert effects[-1] == ev.SendComplete(3, 60)
    assert sender.phase is ev.Phase.TRANSFERRING, "Complete is no proof of arrival"
    assert sender.step(ev.LandedByPeer(G), 0.0) == [ev.Ended(None)]
    assert sender.state is SenderState.SUCCEEDED


@given(st.permutations(range(7)))
def test_evidence_and_claims_come_in_any_order(order: list[int]) -> None:
    inputs: list[ev.Input] = [
        *(ev.ChunkSeen(G, ChunkIndex(i), 10 + i, i) for i in range(3)),
        *(ev.ChunkClaimed(G, ChunkIndex(i), 10 + i, i) for i in range(3)),
        ev.CompleteClaimed(G, 3, 33),
    ]
    receiver = _offered(33)
    for position, index in enumerate(order):
        effects = receiver.step(inputs[index], 0.0)
        assert (ev.CloseGrant() in effects) == (position == 6), "verified with the last piece, never before"
    assert receiver.phase is ev.Phase.TRANSFERRING, "not before the grant is closed"
    assert receiver.step(ev.Quiet(), 0.0) == [ev.SendLanded(G), ev.Ended(None)]
    assert receiver.state is ReceiverState.SUCCEEDED


def _failure(receiver: Receiver, inputs: list[ev.Input]) -> ErrorReason | None:
    for event in inputs:
        receiver.step(event, 0.0)
    assert receiver.state is ReceiverState.FENCING
    receiver.step(ev.Quiet(), 0.0)
    assert receiver.phase is ev.Phase.FAILED
    return receiver.why.reason if receiver.why else None


def test_a_wrong_checksum_never_becomes_success() -> None:
    chunk = ChunkIndex(0)
    inputs: list[ev.Input] = [ev.ChunkSeen(G, chunk, 10, 1), ev.ChunkClaimed(G, chunk, 10, 2)]
    assert _failure(_offered(10), inputs) is ErrorReason.CHECKSUM_MISMATCH


def test_a_missing_checksum_is_a_wrong_one() -> None:
    chunk = ChunkIndex(0)
    inputs: list[ev.Input] = [ev.ChunkSeen(G, chunk, 10, None), ev.ChunkClaimed(G, chunk, 10, 2)]
    assert _failure(_offered(10), inputs) is ErrorReason.CHECKSUM_MISMATCH


def test_fewer_bytes_than_claimed_fail() -> None:
    chunk = ChunkIndex(0)
    inputs: list[ev.Input] = [ev.ChunkSeen(G, chunk, 9, None), ev.ChunkClaimed(G, chunk, 10, None)]
    assert _failure(_offered(10), inputs) is ErrorReason.TRANSFER_FAILED


def test_a_granted_page_that_was_not_written_fails() -> None:
    chunk = ChunkIndex(0)
    inputs: list[ev.Input] = [
        ev.ChunkSeen(G, chunk, 10, None),
        ev.ChunkClaimed(G, chunk, 10, None),
        ev.CompleteClaimed(G, 1, 10),
    ]
    assert _failure(_offered(20), inputs) is ErrorReason.TRANSFER_FAILED


def test_news_of_another_grant_is_refused() -> None:
    receiver = _offered(10)
    effects = receiver.step(ev.ChunkSeen(GrantId(8), ChunkIndex(0), 10, None), 0.0)
    assert isinstance(effects[0], ev.Refused)
    receiver.step(ev.ChunkClaimed(G, ChunkIndex(0), 10, None), 0.0)
    assert receiver.step(ev.CompleteClaimed(G, 1, 10), 0.0) == [], "the other grant's bytes count for nothing"


def test_an_abort_ends_only_when_quiet() -> None:
    why = ev.Why(ErrorReason.CANCELLED, "client left")
    sender, receiver = Sender(10.0), _offered(10)
    sender.step(ev.Offer(G), 0.0)
    sender.step(ev.ChunkReady(ChunkIndex(0), last=True), 0.0)
    assert receiver.step(ev.Broken(why), 0.0) == [ev.SendAbort(why), ev.Fence()]
    assert sender.step(ev.PeerAborted(why), 0.0) == [ev.Fence()]
    assert sender.phase is not ev.Phase.FAILED, "its transfer may still read the pages"
    assert sender.step(ev.ChunkMoved(ChunkIndex(0), 10, None), 0.0) == []
    assert sender.step(ev.Quiet(), 0.0) == [ev.SendAbortAck(), ev.Ended(why)]
    assert receiver.step(ev.PeerQuiet(), 0.0) == []
    assert receiver.step(ev.Quiet(), 0.0)[-1] == ev.Ended(why)
    assert (sender.phase, receiver.phase) == (ev.Phase.FAILED, ev.Phase.FAILED)


def test_a_lost_link_after_verification_can_not_take_the_kv_back() -> None:
    receiver = _offered(10)
    chunk = ChunkIndex(0)
    receiver.step(ev.ChunkSeen(G, chunk, 10, None), 0.0)
    receiver.step(ev.ChunkClaimed(G, chunk, 10, None), 0.0)
    receiver.step(ev.CompleteClaimed(G, 1, 10), 0.0)
    receiver.step(ev.Broken(ev.Why(ErrorReason.LINK_LOST, "gone")), 0.0)
    receiver.step(ev.Quiet(), 0.0)
    assert receiver.state is ReceiverState.SUCCEEDED


def test_kv_that_is_verified_but_does_not_reach_the_engine_fails_on_both_sides() -> None:
    sender, receiver = Sender(10.0), _offered(10)
    why = ev.Why(ErrorReason.TRANSFER_FAILED, "no copy to the device")
    chunk = ChunkIndex(0)
    for event in (ev.Offer(G), ev.ChunkReady(chunk, last=True), ev.ChunkMoved(chunk, 10, None)):
        sender.step(event, 0.0)
    for claim in (ev.ChunkSeen(G, chunk, 10, None), ev.ChunkClaimed(G, chunk, 10, None), ev.CompleteClaimed(G, 1, 10)):
        receiver.step(claim, 0.0)
    assert receiver.step(ev.Quiet(why), 0.0) == [ev.SendAbort(why), ev.SendAbortAck(), ev.Ended(why)]
    assert (receiver.phase, receiver.why) == (ev.Phase.FAILED, why)
    assert sender.step(ev.PeerAborted(why), 0.0) == [ev.Fence()]


def test_the_sender_never_succeeds_without_landed() -> None:
    sender = Sender(deadline=10.0)
    sender.step(ev.Offer(G), 0.0)
    sender.step(ev.ChunkReady(ChunkIndex(0), last=True), 0.0)
    sender.step(ev.ChunkMoved(ChunkIndex(0), 10, None), 0.0)
    sender.step(ev.Broken(ev.Why(ErrorReason.LINK_LOST, "gone")), 0.0)
    assert isinstance(sender.step(ev.LandedByPeer(G), 0.0)[0], ev.Refused)
    sender.step(ev.Quiet(), 0.0)
    assert sender.state is SenderState.FAILED
