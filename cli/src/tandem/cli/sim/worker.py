"""A worker: its lives one after the other, the rooms of the present one, and what reaches them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tandem.cli.sim.life import Life
from tandem.cli.sim.sides import DIAL_S, DecodeSide, Offered, PrefillSide, Report, Side, Surroundings, Ticket
from tandem.core.errors import ErrorReason
from tandem.core.ids import Role, RoomId, WorkerId
from tandem.core.room import events as ev

PAGES: Final = 24
ROWS: Final = 6
NOTICE_S: Final = 1.0
"""Longest time until a broken connection is noticed."""
MAX_PARKED: Final = 64


class Worker:
    """One worker of the cluster."""

    def __init__(self, worker_id: WorkerId, role: Role, around: Surroundings) -> None:
        self.worker_id = worker_id
        self.role = role
        self._around = around
        self.life: Life | None = None
        self._rooms: dict[RoomId, Side] = {}
        self._parked: dict[RoomId, Offered] = {}
        self._queue: list[DecodeSide] = []

    def start(self, instance: int) -> Life:
        """Begins a new life, with nothing in it."""
        self.life = Life(self._around.agenda, self.worker_id, instance, PAGES, ROWS)
        return self.life

    def crash(self) -> None:
        """Takes everything away."""
        if self.life is not None:
            self.life.alive = False
        self.life = None
        self._rooms, self._parked, self._queue = {}, {}, []

    def rooms(self) -> Iterator[Side]:
        """Rooms that have not ended."""
        yield from list(self._rooms.values())

    def submit(self, ticket: Ticket, report: Report) -> None:
        """A leg of an attempt; refused if it is meant for another life."""
        life, wanted = self.life, ticket.prefill if self.role is Role.PREFILL else ticket.decode
        if life is None or life.incarnation != wanted.incarnation or ticket.room in self._rooms:
            report(ticket.room, ev.Why(ErrorReason.STALE_INCARNATION, f"{wanted} is not there"), ())
            return
        life.when_it_goes_on(lambda: self._open(life, ticket, report))

    def receive(self, room: RoomId, message: ev.Input | Offered) -> None:
        """A message of the other side. Without a room an offer is parked, anything else refused."""
        side = self._rooms.get(room)
        if isinstance(message, Offered):
            if isinstance(side, PrefillSide):
                side.offered(message)
            elif self.life is not None and len(self._parked) < MAX_PARKED:
                self._parked[room] = message
        elif side is not None:
            side.step(message)

    def abort(self, room: RoomId, why: ev.Why) -> None:
        """The gateway gives an attempt up."""
        if (side := self._rooms.get(room)) is not None:
            side.step(ev.Broken(why))

    def lose_peer(self, worker_id: WorkerId, reason: ErrorReason) -> None:
        """The link to a peer is gone, and every room on it with it."""
        for side in self.rooms():
            if side.peer.worker_id == worker_id:
                side.step(ev.Broken(ev.Why(reason, f"the link to {worker_id} is gone")))

    def _open(self, life: Life, ticket: Ticket, report: Report) -> None:
        around = self._around
        if self.role is Role.PREFILL:
            sender = around.machines.sender(ticket.deadline)
            prefill = PrefillSide(around, life, ticket, sender, report, self._close)
            self._rooms[ticket.room] = prefill
            prefill.begin()
            if (parked := self._parked.pop(ticket.room, None)) is not None:
                prefill.offered(parked)
            return
        receiver = around.machines.receiver(ticket.deadline)
        decode = DecodeSide(around, life, ticket, receiver, report, self._close, waits_for_pages=self._queue.append)
        self._rooms[ticket.room] = decode
        decode.begin()
        around.agenda.soon(DIAL_S, f"{life} dials for room {ticket.room}", lambda: self._dialled(decode))

    def _dialled(self, side: DecodeSide) -> None:
        if self._around.network.reaches(self.worker_id, side.peer.worker_id):
            side.step(ev.LinkUp())
        else:
            side.step(ev.Broken(ev.Why(ErrorReason.PEER_LOST, "the peer does not answer")))

    def _close(self, room: RoomId) -> None:
        """Takes a room off; who waits for pages tries again when it has given its own back."""
        self._rooms.pop(room, None)
        waiting = list(self._queue)
        self._queue.clear()

        def serve() -> None:
            for side in waiting:
                side.reserve()

        if waiting:
            self._around.agenda.after(0.0, f"{self.worker_id} has pages again", serve)
