"""A change of a worker's role while it runs: one at a time, and who asked is told what became of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Role, WorkerLife


@dataclass(frozen=True, slots=True)
class _Wish:
    role: Role
    granted: asyncio.Future[WorkerLife]


class RoleSwitch:
    """What is asked by an RPC, and carried out by the worker's life. Everything happens on its loop."""

    def __init__(self) -> None:
        self._wish: _Wish | None = None
        self._came = asyncio.Event()

    async def ask(self, role: Role) -> WorkerLife:
        """Returns the worker's life in another role, once it is registered. Goes on if the caller leaves.

        Raises what it was refused with; DRAINING if another change is under way.
        """
        if self._wish is not None:
            raise TandemError(ErrorReason.DRAINING, f"the worker becomes one of {self._wish.role.value} already")
        granted: asyncio.Future[WorkerLife] = asyncio.get_running_loop().create_future()
        granted.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._wish = _Wish(role, granted)
        self._came.set()
        return await asyncio.shield(granted)

    async def asked(self) -> Role:
        """The role that is wished for, when one is."""
        await self._came.wait()
        assert self._wish is not None, "it is there until it is answered"
        return self._wish.role

    def made(self, life: WorkerLife) -> None:
        """The worker has registered, in the role that was wished for, if one was."""
        if (wish := self._answered()) is not None:
            wish.granted.set_result(life)

    def refused(self, error: TandemError) -> None:
        """The worker stays as it is, or ends."""
        if (wish := self._answered()) is not None:
            wish.granted.set_exception(error)

    def _answered(self) -> _Wish | None:
        wish, self._wish = self._wish, None
        self._came.clear()
        return wish
