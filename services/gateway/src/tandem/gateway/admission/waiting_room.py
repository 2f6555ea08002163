"""Where requests wait for their turn: the shell around tandem.core.fair_queue. docs/admission.md tells of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Protocol

from opentelemetry.trace import Span

from tandem.core.errors import ErrorReason
from tandem.core.fair_queue import Ask, FairQueue, Priority, QueueLimits, Space, State, Ticket
from tandem.core.refusals import Refusal, Refused
from tandem.rpc.tracing import names
from tandem.rpc.tracing.provider import Tracing


class Watcher(Protocol):
    """Hears what happens in a waiting room."""

    def saw_wait(self, priority: Priority, waited_s: float) -> None:
        """A request got its place."""


class WaitingRoom:
    """Requests in the order of their turns. One per gateway process, on one loop."""

    def __init__(self, limits: QueueLimits, watcher: Watcher, tracing: Tracing, space: Space | None = None) -> None:
        """space: what requests need besides places."""
        self._queue = FairQueue(limits, space)
        self._watcher = watcher
        self._tracing = tracing
        self._waiters: dict[Ticket, asyncio.Future[None]] = {}

    @property
    def used(self) -> int:
        """Sequences that have a place."""
        return self._queue.used

    @property
    def most(self) -> int:
        """Places in all."""
        return self._queue.limits.places

    def waiting(self) -> dict[Priority, int]:
        """Requests that wait, by class."""
        return {priority: self._queue.waiting_of(priority) for priority in Priority}

    def look_again(self) -> None:
        """More may fit than before."""
        if self._queue.waiting:
            self._let_in(self._queue.pump(asyncio.get_running_loop().time()))

    @asynccontextmanager
    async def place(self, ask: Ask, span: Span) -> AsyncIterator[None]:
        """Waits for a request's turn, and keeps its place while the context lasts. span: of the request.

        Raises INVALID_ARGUMENT if it could never run, Refused if it can't be now or its deadline comes before its turn.
        """
        loop = asyncio.get_running_loop()
        ticket = self._queue.offer(ask, loop.time())
        for displaced in ticket.displaced:
            self._turn_away(displaced)
        try:
            if ticket.state is State.WAITING:
                await self._turn_of(ticket, span)
            self._watcher.saw_wait(ask.priority, loop.time() - ticket.since)
            yield
        finally:
            self._let_in(self._queue.leave(ticket, loop.time()))

    async def _turn_of(self, ticket: Ticket, span: Span) -> None:
        """Returns when a request has its place."""
        turn = self._waiters[ticket] = asyncio.get_running_loop().create_future()
        waiting = self._tracing.start(names.ADMISSION, span, {names.PRIORITY: ticket.ask.priority.value})
        try:
            async with asyncio.timeout_at(ticket.ask.deadline):
                await turn
        except TimeoutError:
            raise Refused(
                Refusal.EXPIRED,
                "The request ran out of time while it waited for its turn.",
                reason=ErrorReason.DEADLINE_EXCEEDED,
            ) from None
        finally:
            del self._waiters[ticket]
            waiting.end()

    def _let_in(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            turn = self._waiters[ticket]
            if not turn.done():
                turn.set_result(None)

    def _turn_away(self, ticket: Ticket) -> None:
        turn = self._waiters[ticket]
        if not turn.done():
            turn.set_exception(
                Refused(Refusal.DISPLACED, "The queue is full, and others have more right to wait. Try again later.")
            )
