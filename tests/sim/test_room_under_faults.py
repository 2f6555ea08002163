"""Both machines of a room on one virtual clock, with a network that loses, delays and repeats, and lanes that fail.

Everything random comes from one seed, which a failure prints. What must hold after every event: prefill succeeds only
if decode did (I4), nobody ends before it is quiet (I2), decode succeeds only with every byte as claimed (I5). At the
end of every run both sides have ended (liveness).
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field

import pytest

from tandem.core.errors import ErrorReason
from tandem.core.ids import ChunkIndex, GrantId
from tandem.core.room import events as ev
from tandem.core.room.receiver import Receiver
from tandem.core.room.sender import Sender

DEADLINE_S = 10.0
GRACE_S = 2.0
GRANT = GrantId(7)
CHUNK_BYTES = 100
ROOMS = 4_000


@dataclass
class Faults:
    """How bad this run's world is."""

    loss: float
    repeat: float
    corrupt: float
    transfer_failure: float
    abort: float
    link_loss: float
    hand_in_failure: float
    """Verified KV that does not reach the engine's own memory."""


@dataclass
class Room:
    """One room: two machines, the messages and bytes between them, and what the checkers saw."""

    dice: random.Random
    faults: Faults
    chunks: int
    sender: Sender = field(default_factory=lambda: Sender(DEADLINE_S))
    receiver: Receiver = field(default_factory=lambda: Receiver(DEADLINE_S))
    now: float = 0.0
    agenda: list[tuple[float, int, str, ev.Input]] = field(default_factory=list)
    in_flight: set[ChunkIndex] = field(default_factory=set)
    grant_open: bool = False
    corrupted: set[ChunkIndex] = field(default_factory=set)
    kept_out: bool = False
    """The KV did not reach the engine's own memory."""
    ended: dict[str, list[ev.Why | None]] = field(default_factory=lambda: {"sender": [], "receiver": []})
    _ticket: itertools.count[int] = field(default_factory=itertools.count)

    def later(self, side: str, event: ev.Input, most_s: float = 1.0) -> None:
        """Puts an input on the agenda."""
        heapq.heappush(self.agenda, (self.now + self.dice.random() * most_s, next(self._ticket), side, event))

    def message(self, side: str, event: ev.Input) -> None:
        """Sends over the network."""
        if self.dice.random() < self.faults.loss:
            return
        self.later(side, event)
        if self.dice.random() < self.faults.repeat:
            self.later(side, event)

    def run(self) -> None:
        """From the first input until nothing is left to happen."""
        self.later("receiver", ev.LinkUp())
        for side in ("sender", "receiver"):
            heapq.heappush(self.agenda, (DEADLINE_S, next(self._ticket), side, ev.Tick()))
            if self.dice.random() < self.faults.abort:
                self.later(side, ev.Broken(ev.Why(ErrorReason.CANCELLED, "the client left")), DEADLINE_S)
            if self.dice.random() < self.faults.link_loss:
                self.later(side, ev.Broken(ev.Why(ErrorReason.LINK_LOST, "the link broke")), DEADLINE_S)
        while self.agenda:
            self.now, _, side, event = heapq.heappop(self.agenda)
            machine = self.sender if side == "sender" else self.receiver
            before = machine.phase
            for effect in machine.step(event, self.now):
                self.carry_out(side, effect)
            self.react(side, before)
            self.check()

    def react(self, side: str, before: ev.Phase) -> None:
        """What the engines do when their room's phase changes."""
        if side == "receiver" and before is ev.Phase.BOOTSTRAPPING and self.receiver.phase is ev.Phase.WAITING:
            self.grant_open = True
            self.later("receiver", ev.PagesReserved(GRANT, CHUNK_BYTES * self.chunks))
        if side == "sender" and before is ev.Phase.BOOTSTRAPPING and self.sender.phase is ev.Phase.WAITING:
            at = self.now
            for index in range(self.chunks):
                at += self.dice.random()
                ready = ev.ChunkReady(ChunkIndex(index), last=index == self.chunks - 1)
                heapq.heappush(self.agenda, (at, next(self._ticket), "sender", ready))

    def carry_out(self, side: str, effect: ev.Effect) -> None:
        """The shell: sends messages, moves bytes, fences."""
        match effect:
            case ev.SendOffer(grant_id):
                self.message("sender", ev.Offer(grant_id))
            case ev.StartTransfer(chunk):
                self.move(chunk)
            case ev.SendChunkDone(chunk, size, checksum):
                self.message("receiver", ev.ChunkClaimed(GRANT, chunk, size, checksum))
            case ev.SendComplete(chunks, size):
                self.message("receiver", ev.CompleteClaimed(GRANT, chunks, size))
            case ev.SendLanded(grant_id):
                self.message("sender", ev.LandedByPeer(grant_id))
            case ev.SendAbort(why):
                self.message("sender" if side == "receiver" else "receiver", ev.PeerAborted(why))
            case ev.SendAbortAck():
                self.message("sender" if side == "receiver" else "receiver", ev.PeerQuiet())
            case ev.Fence():
                if side == "receiver":
                    self.grant_open = False
                self.later(side, ev.Quiet(), GRACE_S)
            case ev.CloseGrant():
                self.grant_open = False
                self.kept_out = self.dice.random() < self.faults.hand_in_failure
                why = ev.Why(ErrorReason.TRANSFER_FAILED, "no copy to the device") if self.kept_out else None
                self.later(side, ev.Quiet(why), GRACE_S)
            case ev.Ended(why):
                self.ended[side].append(why)

    def move(self, chunk: ChunkIndex) -> None:
        """A transfer: its bytes land, perhaps damaged, or it fails."""
        if self.dice.random() < self.faults.transfer_failure:
            self.later("sender", ev.Broken(ev.Why(ErrorReason.TRANSFER_FAILED, "the lane failed")))
            return
        damaged = self.dice.random() < self.faults.corrupt
        if damaged:
            self.corrupted.add(chunk)
        self.later("receiver", ev.ChunkSeen(GRANT, chunk, CHUNK_BYTES, 1 if damaged else 0))
        self.later("sender", ev.ChunkMoved(chunk, CHUNK_BYTES, 0))

    def check(self) -> None:
        """What must hold after every event."""
        if self.sender.phase is ev.Phase.SUCCESS:
            assert self.receiver.phase is ev.Phase.SUCCESS, "prefill succeeded without decode"
        if self.receiver.phase is ev.Phase.SUCCESS:
            assert not self.corrupted, "damaged bytes were taken"
            assert not self.kept_out, "the engine does not have what it was told it has"
            assert self.receiver.bytes_verified == CHUNK_BYTES * self.chunks
        if self.receiver.phase in (ev.Phase.SUCCESS, ev.Phase.FAILED):
            assert not self.grant_open, "ended with an open grant"


def _run(seed: int) -> Room:
    dice = random.Random(seed)
    bad = [dice.choice((0.0, 0.0, 0.1, 0.4)) for _ in range(7)]
    room = Room(dice, Faults(*bad), dice.randrange(1, 6))
    room.run()
    return room


def test_no_fault_breaks_a_room(request: pytest.FixtureRequest) -> None:
    base = random.SystemRandom().randrange(2**32)
    outcomes = {True: 0, False: 0}
    for seed in range(base, base + ROOMS):
        try:
            room = _run(seed)
            assert [len(ends) for ends in room.ended.values()] == [1, 1], "each side ends once"
            assert room.now <= DEADLINE_S + 2 * GRACE_S + 2, "the end comes by the deadline plus grace"
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        outcomes[room.ended["receiver"] == [None]] += 1
    assert min(outcomes.values()) > ROOMS // 20, f"both good and bad ends must be among them: {outcomes}"


def test_the_same_seed_gives_the_same_story() -> None:
    first, second = _run(42), _run(42)
    assert (first.now, first.ended, first.sender.state) == (second.now, second.ended, second.sender.state)
