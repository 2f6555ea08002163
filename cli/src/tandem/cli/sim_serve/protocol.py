"""The room of each request, run by tandem.core's own machines at the moments that the model of load has for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from tandem.cli.sim.sides import Machines
from tandem.core.ids import ChunkIndex, GrantId
from tandem.core.room import events as ev
from tandem.core.room.receiver import Receiver
from tandem.core.room.sender import Sender

_GRANT: Final = GrantId(1)
"""The one of a room."""


@dataclass(slots=True)
class RoomTally:
    """Of all rooms of a run."""

    opened: int = 0
    ended_well: int = 0
    """On both sides."""
    ended_badly: int = 0
    """On both sides, and both failed: their deadline was over before their KV had landed."""
    refused: int = 0
    """Inputs that a machine did not take: those that came to a room that had failed."""
    steps: int = 0
    """Inputs of all machines."""

    @property
    def not_ended(self) -> int:
        """Rooms of which a side has not ended, or otherwise than the other: once a run is over, a mistake."""
        return self.opened - self.ended_well - self.ended_badly


class Protocol:
    """Opens rooms and counts their ends."""

    def __init__(self, machines: Machines) -> None:
        self.tally = RoomTally()
        self._machines = machines

    def open(self, deadline: float) -> RoomRun:
        """A request is sent to its workers. deadline: virtual seconds."""
        self.tally.opened += 1
        return RoomRun(self._machines.sender(deadline), self._machines.receiver(deadline), self.tally)


class RoomRun:
    """Both machines of a room, fed as their shells would; messages are neither lost nor late (`tandem sim run`)."""

    def __init__(self, sender: Sender, receiver: Receiver, tally: RoomTally) -> None:
        self._sender, self._receiver, self._tally = sender, receiver, tally
        self._chunks = 0
        self._ends: list[tuple[Sender | Receiver, bool]] = []
        """(side, whether it ended well)."""

    def granted(self, size: int, now: float) -> None:
        """Decode has reserved pages for so many bytes."""
        self._feed(self._receiver, ev.LinkUp(), now)
        self._feed(self._receiver, ev.PagesReserved(_GRANT, size), now)

    def computed(self, *, last: bool, now: float) -> Callable[[int, float], None]:
        """Prefill has computed a chunk. Returns what to call with its bytes, and the time, when it has moved."""
        chunk = ChunkIndex(self._chunks)
        self._chunks += 1
        self._feed(self._sender, ev.ChunkReady(chunk, last), now)
        return partial(self._moved, chunk)

    def _moved(self, chunk: ChunkIndex, size: int, now: float) -> None:
        self._feed(self._receiver, ev.ChunkSeen(_GRANT, chunk, size, None), now)
        self._feed(self._sender, ev.ChunkMoved(chunk, size, None), now)

    def _feed(self, side: Sender | Receiver, event: ev.Input, now: float) -> None:
        for machine in (self._sender, self._receiver):
            due = machine.next_deadline()
            if due is not None and due <= now:
                self._step(machine, ev.Tick(), now)
        self._step(side, event, now)

    def _step(self, side: Sender | Receiver, event: ev.Input, now: float) -> None:
        self._tally.steps += 1
        for effect in side.step(event, now):
            self._carry_out(side, effect, now)

    def _carry_out(self, side: Sender | Receiver, effect: ev.Effect, now: float) -> None:
        other = self._receiver if side is self._sender else self._sender
        match effect:
            case ev.SendOffer(grant_id):
                self._step(other, ev.Offer(grant_id), now)
            case ev.SendChunkDone(chunk, size, checksum):
                self._step(other, ev.ChunkClaimed(_GRANT, chunk, size, checksum), now)
            case ev.SendComplete(chunks, size):
                self._step(other, ev.CompleteClaimed(_GRANT, chunks, size), now)
            case ev.SendLanded(grant_id):
                self._step(other, ev.LandedByPeer(grant_id), now)
            case ev.CloseGrant() | ev.Fence():
                self._step(side, ev.Quiet(), now)
            case ev.SendAbort(why):
                self._step(other, ev.PeerAborted(why), now)
            case ev.SendAbortAck():
                self._step(other, ev.PeerQuiet(), now)
            case ev.Ended(why):
                self._ended(side, why is None)
            case ev.Refused():
                self._tally.refused += 1
            case ev.StartTransfer():
                pass  # the worker's link does, and says `moved`

    def _ended(self, side: Sender | Receiver, well: bool) -> None:
        self._ends.append((side, well))
        if len(self._ends) == 2 and self._ends[0][0] is not side and self._ends[0][1] is well:
            self._tally.ended_well += well
            self._tally.ended_badly += not well
        elif len(self._ends) == 3:
            raise AssertionError(f"a side of a room ends again: {self._ends}")
