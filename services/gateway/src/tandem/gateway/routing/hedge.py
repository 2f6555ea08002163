"""Hedging: where a room says nothing for a while, another one is asked too, and the first that speaks is heard.

"The Tail at Scale" (Dean and Barroso, 2013). A slow worker then costs a wait and a second prefill, not the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from tandem.gateway.routing.room_runs import Tell
from tandem.v1 import session_pb2

Ran = TypeVar("Ran")


class Race(Generic[Ran]):
    """Of two rooms for one answer. Used once."""

    def __init__(self, deliver: Tell) -> None:
        """deliver: gets what the room that is ahead says."""
        self._deliver = deliver
        self._lanes: list[asyncio.Task[Ran]] = []
        self._ahead: int | None = None
        self._decided = asyncio.Event()

    @property
    def hedged(self) -> bool:
        """Whether there were two."""
        return len(self._lanes) > 1

    @property
    def hedge_won(self) -> bool:
        """Whether the second one spoke first."""
        return self._ahead == 1

    async def run(
        self,
        first: Callable[[Tell], Coroutine[Any, Any, Ran]],
        another: Callable[[Tell], Coroutine[Any, Any, Ran] | None],
        after_s: float,
    ) -> list[Ran]:
        """Runs the first, and after `after_s` without a word of it another, if there is one to be had.

        Returns how those have ended that did by themselves, last the one that counts: the one that spoke first or,
        where none did, the one that failed last. Cancelling it ends both.
        """
        decided = asyncio.create_task(self._decided.wait())
        ended: list[Ran] = []
        try:
            self._start(first)
            await asyncio.wait({self._lanes[0], decided}, timeout=after_s, return_when=asyncio.FIRST_COMPLETED)
            if not self._lanes[0].done() and self._ahead is None:
                self._start(another)
            running = set(self._lanes)
            while running and self._ahead is None:
                done, _ = await asyncio.wait({*running, decided}, return_when=asyncio.FIRST_COMPLETED)
                ended += [lane.result() for lane in self._lanes if lane in done and lane in running]
                running -= done
            if self._ahead is None:
                return ended
            return [*ended, await self._lanes[self._ahead]]
        finally:
            left = [task for task in (*self._lanes, decided) if not task.done()]
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)

    def _start(self, room: Callable[[Tell], Coroutine[Any, Any, Ran] | None]) -> None:
        number = len(self._lanes)
        running = room(lambda delta: self._said(number, delta))
        if running is not None:
            self._lanes.append(asyncio.create_task(running))

    def _said(self, number: int, delta: session_pb2.Delta) -> bool:
        if self._ahead is None:
            self._ahead = number
            self._decided.set()
        return self._deliver(delta) if self._ahead == number else True
