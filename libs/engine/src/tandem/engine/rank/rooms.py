"""The shell of one room: feeds its machine and carries out what the machine decides.

Everything here runs on the rank's loop. Effects are carried out in order; what an effect brings about (a transfer
that ends, a grant that closes) comes back as the machine's next input.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RankId, RoomId
from tandem.core.room.events import Broken, Effect, Ended, Fence, Input, Refused, SendAbort, SendAbortAck, Tick, Why
from tandem.core.room.receiver import Receiver
from tandem.core.room.sender import Sender
from tandem.core.room.timeline import Step, Timeline
from tandem.engine.port import RoomTrace, Ticket
from tandem.engine.rank import wire
from tandem.engine.rank.counters import RankCounters
from tandem.engine.rank.handles import RoomHandle
from tandem.engine.rank.link import KvLink
from tandem.engine.rank.pools import PoolMap
from tandem.engine.rank.staging import Staging
from tandem.rpc.telemetry import parse

log = logging.getLogger(__name__)


class RoomHost(Protocol):
    """What a room needs of its rank."""

    @property
    def pools(self) -> PoolMap:
        """The rank's own pools."""

    @property
    def page_size(self) -> int:
        """Tokens of a KV page."""

    @property
    def staging(self) -> Staging:
        """What lies between them and the engine's own."""

    @property
    def counters(self) -> RankCounters:
        """The rank's counters."""

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Runs work in the background, supervised."""

    def room_ended(self, room: RoomShell, why: Why | None) -> None:
        """A room reached its terminal state."""


class RoomShell(ABC):
    """What both sides share."""

    def __init__(self, ticket: Ticket, machine: Sender | Receiver, host: RoomHost) -> None:
        self.ticket = ticket
        self.link: KvLink | None = None
        self._machine = machine
        self._host = host
        self._handle: RoomHandle | None = None
        self._inbox: deque[Input] = deque()
        self._stepping = False
        self._started_s: float | None = None
        self._loop = asyncio.get_running_loop()
        self.opened_s = self._loop.time()
        """When its ticket was opened, in the loop's seconds."""
        self._timer: asyncio.TimerHandle | None = None
        parent = parse(ticket.traceparent)
        self._timeline = Timeline(self._loop.time) if parent is not None and parent.sampled else None
        """None where the trace is not sampled: then nothing is noted."""
        self._opened_unix_ns = time.time_ns()
        self.log_ids = {"request_id": ticket.request_id, "trace_id": parent.trace_id_hex if parent is not None else ""}
        """For lines of logs about this room."""
        known = ", ".join(f"{name[:-3]} {value}" for name, value in self.log_ids.items() if value)
        self.label = f"room {ticket.room} ({known})" if known else f"room {ticket.room}"
        """Its name in logs. SGLang's processes have a format of their own, which knows no request."""
        self._arm()

    @property
    def room(self) -> RoomId:
        """Its number."""
        return self.ticket.room

    @property
    def grant_id(self) -> int:
        """Its grant, or 0."""
        return self._machine.grant_id or 0

    @property
    def state(self) -> str:
        """Of its machine, by name."""
        return str(self._machine.state.value)

    def trace(self, rank: RankId) -> RoomTrace | None:
        """What was noted of it, once it has ended; None where its trace is not sampled."""
        timeline = self._timeline
        if timeline is None:
            return None
        spans, parent = timeline.spans(), self.ticket.traceparent
        return RoomTrace(self.room, rank, parent, self._opened_unix_ns, spans, timeline.dropped)

    def attach(self, handle: RoomHandle) -> None:
        """The engine takes hold of the room."""
        self._handle = handle
        self._publish()

    def feed(self, event: Input) -> None:
        """Gives the machine one input and carries out what it decides; safe to call from within an effect."""
        self._inbox.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._inbox:
                for effect in self._machine.step(self._inbox.popleft(), self._loop.time()):
                    self._carry_out(effect)
                self._publish()
        finally:
            self._stepping = False

    def _begin(self) -> None:
        """The engine begins with the room."""
        if self._started_s is None:
            self._started_s = self._loop.time()
            self._host.counters.measures.queue_s.observe(self._started_s - self.opened_s)

    def _arm(self) -> None:
        deadline = self._machine.next_deadline()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if deadline is None else self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self.feed(Tick())
        self._arm()

    def _publish(self) -> None:
        if self._handle is not None:
            self._handle.bytes_moved = self.bytes_moved
            self._handle.update(self._machine.phase, self._machine.why)

    @property
    @abstractmethod
    def granted_pages(self) -> int:
        """Entries of the KV pool under its grant."""

    @property
    @abstractmethod
    def bytes_moved(self) -> int:
        """Bytes that are over."""

    def _carry_out(self, effect: Effect) -> None:
        try:
            match effect:
                case Fence():
                    self._begin_fence()
                    self._host.spawn(self._fence(), f"fence {self.room}")
                case SendAbort(why):
                    if self.link is not None:
                        self._host.counters.measures.aborts_sent += 1
                        self.link.send_abort(self.room, self.grant_id, why)
                case SendAbortAck():
                    if self.link is not None:
                        self.link.send_abort_ack(self.room, self.grant_id)
                case Refused(what):
                    self._host.counters.stale_messages += 1
                    log.debug("%s: refused %s", self.label, what, extra=self.log_ids)
                case Ended(why):
                    self._end(why)
                case _:
                    self.act(effect)
        except TandemError as error:
            self.feed(Broken(wire.why_from(error)))

    @abstractmethod
    def act(self, effect: Effect) -> None:
        """Carries out an effect that only this side knows. Raises TandemError if it can't be."""

    async def _fence(self) -> None:
        began = self._loop.time()
        await self._quiesce()
        self._host.counters.measures.fence_s.observe(self._loop.time() - began)

    @abstractmethod
    async def _quiesce(self) -> None:
        """Returns once nothing of this room moves any more, then feeds Quiet."""

    def _begin_fence(self) -> None:
        if self._timeline is not None and self._machine.why is not None:
            self._timeline.fail(self._machine.why.reason)
            self._timeline.begin(Step.FENCE)

    def _end(self, why: Why | None) -> None:
        if self._timeline is not None:
            self._timeline.end(Step.FENCE)
            if why is not None:
                self._timeline.fail(why.reason)
        if self._timer is not None:
            self._timer.cancel()
        if self.link is not None:
            self.link.rooms.discard(self.room)
        if self._started_s is not None:
            elapsed_s = self._loop.time() - self._started_s
            if self._handle is not None:
                self._handle.elapsed_s = elapsed_s
            if why is None:
                self._host.counters.measures.room_s.observe(elapsed_s)
        if why is not None and why.reason is ErrorReason.CHECKSUM_MISMATCH:
            self._host.counters.checksum_failures += 1
        self._host.room_ended(self, why)
