"""Where answers have room, as the router asks for it: tandem.core.decode_space, and the wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tandem.core.decode_space import DecodeSpace
from tandem.core.page_ledger import Seat


class DecodeRoom:
    """One per gateway process, on one loop."""

    def __init__(self, space: DecodeSpace | None = None, look_again: Callable[[], None] | None = None) -> None:
        """space: without a bound if None; `freed` is its on_freed. look_again: for requests that wait for a place."""
        self.space = space or DecodeSpace()
        self._look_again = look_again
        self._freed = asyncio.Event()
        self._looks = False

    def freed(self) -> None:
        """More may fit than before: first for who has a place and waits in `wait`, then for who waits for one."""
        if self.space.standing:
            self._freed.set()
            self._freed = asyncio.Event()
        if self._look_again is not None and not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_soon(self._look)

    async def wait(self, model: str, seat: Seat) -> None:
        """Returns when there may be room. Nobody gets a place for the model meanwhile: who waits here has one."""
        space = self.space
        space.put_back()
        space.settle()
        if not space.full(model, seat):
            return
        space.standing[model] += 1
        space.stand(model, seat)
        try:
            await self._freed.wait()
        finally:
            space.standing[model] -= 1
            if not space.standing[model]:
                del space.standing[model]
                # After the one that waited has looked again.
                asyncio.get_running_loop().call_soon(self.freed)

    def _look(self) -> None:
        self._looks = False
        if self._look_again is not None:
            self._look_again()
