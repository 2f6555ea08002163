"""How a room ends for its gateway: once, whatever happens; and when its KV has arrived."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role


def _nothing(_: TandemError) -> None:
    """Nothing runs any more."""


class RoomEnd:
    """Of one attempt; it is made on the loop."""

    def __init__(self, cancel_legs: Callable[[TandemError], None]) -> None:
        """cancel_legs: ends what still runs of the room, where it fails."""
        self._cancel_legs = cancel_legs
        self._done: asyncio.Future[TandemError | None] = asyncio.get_running_loop().create_future()
        self.final = False
        """Whether no further attempt can be better: decode began otherwise than the client was told, or the client
        is too slow."""
        self.blamed: Role | None = None
        """The leg that failed of itself, once it has failed; None = not known, or neither."""
        self.kv_arrived = False
        """Whether the prompt is computed and its KV is where the answer is made."""
        self._when_kv_arrived: list[Callable[[], None]] = []

    @property
    def over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._done.done()

    @property
    def complete(self) -> bool:
        """Whether the whole answer was delivered."""
        return self._told and self._done.result() is None

    @property
    def failure(self) -> TandemError | None:
        """Why it failed; None if it did not, or was cancelled."""
        return self._done.result() if self._told else None

    @property
    def _told(self) -> bool:
        return self._done.done() and not self._done.cancelled()

    def on_kv_arrived(self, hook: Callable[[], None]) -> None:
        """Adds what is called once, when the prompt is done with."""
        self._when_kv_arrived.append(hook)

    def note_kv(self) -> None:
        """The KV has arrived; it may be said again."""
        if not self.kv_arrived:
            self.kv_arrived = True
            for hook in self._when_kv_arrived:
                hook()

    def well(self) -> None:
        """The whole answer was delivered, and nothing of the room runs any more."""
        self._cancel_legs = _nothing
        self._done.set_result(None)

    def fail(self, error: TandemError, blamed: Role | None = None, *, final: bool = False) -> None:
        """It has failed, unless it had ended before. blamed, final: see the attributes."""
        if not self._done.done():
            self.blamed, self.final = blamed, final
            self._done.set_result(error)
        # Once, and then let go of: who made this holds it, and what holds each other waits for the collector.
        cancel_legs, self._cancel_legs = self._cancel_legs, _nothing
        cancel_legs(error)

    def fail_slow(self) -> None:
        """The client is too far behind."""
        self.fail(
            TandemError(ErrorReason.OVERLOADED, "The client reads too slowly; the answer was given up."), final=True
        )

    def give_up(self, error: TandemError) -> bool:
        """Ends all legs, from outside. False if it had ended."""
        if self._done.done():
            return False
        self.fail(error)
        return True

    async def wait(self) -> TandemError | None:
        """Returns None when the answer is complete, else why it failed. Cancelling it ends all legs."""
        try:
            return await self._done
        except asyncio.CancelledError:
            self.fail(TandemError(ErrorReason.CANCELLED, "The client has gone, or its time is over."))
            raise
