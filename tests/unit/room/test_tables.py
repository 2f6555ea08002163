"""The transition tables are total: every (state, input) pair is legal, or listed here as illegal."""

from __future__ import annotations

import itertools
from enum import Enum

import pytest

from tandem.core.errors import ErrorReason
from tandem.core.ids import ChunkIndex, GrantId
from tandem.core.room import events as ev
from tandem.core.room import receiver, sender

WHY = ev.Why(ErrorReason.CANCELLED, "test")
G, C = GrantId(5), ChunkIndex(0)
SENDER_INPUTS: list[ev.Input] = [
    ev.Offer(G),
    ev.ChunkReady(C, last=True),
    ev.ChunkMoved(C, 10, 7),
    ev.LandedByPeer(G),
    ev.PeerAborted(WHY),
    ev.PeerQuiet(),
    ev.Broken(WHY),
    ev.Quiet(),
    ev.Tick(),
]
RECEIVER_INPUTS: list[ev.Input] = [
    ev.LinkUp(),
    ev.PagesReserved(G, 10),
    ev.ChunkSeen(G, C, 10, 7),
    ev.ChunkClaimed(G, C, 10, 7),
    ev.CompleteClaimed(G, 1, 10),
    ev.PeerAborted(WHY),
    ev.PeerQuiet(),
    ev.Broken(WHY),
    ev.Quiet(),
    ev.Tick(),
]

ILLEGAL_SENDER = {
    "awaiting_grant": {"ChunkMoved", "LandedByPeer", "PeerQuiet", "Quiet"},
    "granted": {"Offer", "ChunkMoved", "LandedByPeer", "PeerQuiet", "Quiet"},
    "pushing": {"Offer", "LandedByPeer", "PeerQuiet", "Quiet"},
    "completed": {"Offer", "ChunkReady", "ChunkMoved", "PeerQuiet", "Quiet"},
    "quiescing": {"Offer", "ChunkReady", "LandedByPeer"},
    "succeeded": {type(event).__name__ for event in SENDER_INPUTS},
    "failed": {type(event).__name__ for event in SENDER_INPUTS},
}
_CLAIMS = {"ChunkSeen", "ChunkClaimed", "CompleteClaimed"}
ILLEGAL_RECEIVER = {
    "connecting": {"PagesReserved", "PeerQuiet", "Quiet"} | _CLAIMS,
    "ready": {"LinkUp", "PeerQuiet", "Quiet"} | _CLAIMS,
    "offered": {"LinkUp", "PagesReserved", "PeerQuiet", "Quiet"},
    "receiving": {"LinkUp", "PagesReserved", "PeerQuiet", "Quiet"},
    "closing": {"LinkUp", "PagesReserved"} | _CLAIMS,
    "fencing": {"LinkUp", "PagesReserved"},
    "succeeded": {type(event).__name__ for event in RECEIVER_INPUTS},
    "failed": {type(event).__name__ for event in RECEIVER_INPUTS},
}

_S_PATHS: dict[str, list[ev.Input]] = {
    "awaiting_grant": [],
    "granted": [ev.Offer(G)],
    "pushing": [ev.Offer(G), ev.ChunkReady(C, last=True)],
    "completed": [ev.Offer(G), ev.ChunkReady(C, last=True), ev.ChunkMoved(C, 10, 7)],
    "quiescing": [ev.Broken(WHY)],
    "succeeded": [ev.Offer(G), ev.ChunkReady(C, last=True), ev.ChunkMoved(C, 10, 7), ev.LandedByPeer(G)],
    "failed": [ev.Broken(WHY), ev.Quiet()],
}
_VERIFIED = [ev.ChunkSeen(G, C, 10, 7), ev.ChunkClaimed(G, C, 10, 7), ev.CompleteClaimed(G, 1, 10)]
_R_PATHS: dict[str, list[ev.Input]] = {
    "connecting": [],
    "ready": [ev.LinkUp()],
    "offered": [ev.LinkUp(), ev.PagesReserved(G, 10)],
    "receiving": [ev.LinkUp(), ev.PagesReserved(G, 10), ev.ChunkSeen(G, C, 10, 7)],
    "closing": [ev.LinkUp(), ev.PagesReserved(G, 10), *_VERIFIED],
    "fencing": [ev.Broken(WHY)],
    "succeeded": [ev.LinkUp(), ev.PagesReserved(G, 10), *_VERIFIED, ev.Quiet()],
    "failed": [ev.Broken(WHY), ev.Quiet()],
}


def _at(machine: sender.Sender | receiver.Receiver, path: list[ev.Input], state: str) -> None:
    for event in path:
        machine.step(event, 0.0)
    assert machine.state.value == state


def _names(states: type[Enum]) -> list[str]:
    return [state.value for state in states]


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(_names(sender.SenderState), SENDER_INPUTS)), ids=str
)
def test_sender_pair_is_legal_or_listed(state: str, event: ev.Input) -> None:
    machine = sender.Sender(deadline=100.0)
    _at(machine, _S_PATHS[state], state)
    before = machine.state
    effects = machine.step(event, 1.0)
    refused = any(isinstance(effect, ev.Refused) for effect in effects)
    assert refused == (type(event).__name__ in ILLEGAL_SENDER[state])
    assert not refused or machine.state is before


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(_names(receiver.ReceiverState), RECEIVER_INPUTS)), ids=str
)
def test_receiver_pair_is_legal_or_listed(state: str, event: ev.Input) -> None:
    machine = receiver.Receiver(deadline=100.0)
    _at(machine, _R_PATHS[state], state)
    before = machine.state
    effects = machine.step(event, 1.0)
    refused = [effect for effect in effects if isinstance(effect, ev.Refused)]
    duplicate = state == "receiving" and type(event).__name__ == "ChunkSeen"
    assert bool(refused) == (duplicate or type(event).__name__ in ILLEGAL_RECEIVER[state])
    assert not refused or machine.state is before


def test_terminal_states_have_no_way_out() -> None:
    assert not any(state in sender.TERMINAL for state, _ in sender.TRANSITIONS)
    assert not any(state in receiver.TERMINAL for state, _ in receiver.TRANSITIONS)


@pytest.mark.parametrize("state", [name for name in _S_PATHS if name not in ("succeeded", "failed", "quiescing")])
def test_sender_gives_up_at_its_deadline(state: str) -> None:
    machine = sender.Sender(deadline=100.0)
    _at(machine, _S_PATHS[state], state)
    assert machine.next_deadline() == 100.0
    assert machine.step(ev.Tick(), 99.9) == []
    effects = machine.step(ev.Tick(), 100.0)
    assert [type(effect) for effect in effects] == [ev.SendAbort, ev.Fence]
    assert machine.next_deadline() is None
    assert machine.step(ev.Quiet(), 100.1)[-1] == ev.Ended(machine.why)
    assert machine.why is not None
    assert machine.why.reason is ErrorReason.DEADLINE_EXCEEDED


@pytest.mark.parametrize("state", ["connecting", "ready", "offered", "receiving"])
def test_receiver_gives_up_at_its_deadline(state: str) -> None:
    machine = receiver.Receiver(deadline=100.0)
    _at(machine, _R_PATHS[state], state)
    effects = machine.step(ev.Tick(), 100.0)
    assert [type(effect) for effect in effects] == [ev.SendAbort, ev.Fence]
    assert machine.phase is ev.Phase.TRANSFERRING, "not failed before its grant is closed"
    machine.step(ev.Quiet(), 100.1)
    assert machine.phase is ev.Phase.FAILED
