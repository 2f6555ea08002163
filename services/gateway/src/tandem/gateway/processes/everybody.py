"""All processes of a gateway, as calls of operators reach them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import grpc

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.siblings.place import address_in
from tandem.rpc.client import open_channel

TIMEOUT_S: Final = 5.0
"""Of a call to one process."""

_T = TypeVar("_T")
Call = Callable[[grpc.aio.Channel], Awaitable[_T]]
"""Makes one call over a channel."""


class Everybody:
    """Those that serve. One that is being started has nothing to show, and gets what was changed when it serves."""

    def __init__(self, folder: Path, listening: Callable[[], frozenset[int]]) -> None:
        """folder: of their sockets. listening: who serves now."""
        self._folder = folder
        self._listening = listening

    @property
    def here(self) -> list[int]:
        """Who serves now. Raises NO_WORKER if nobody does."""
        found = sorted(self._listening())
        if not found:
            raise TandemError(ErrorReason.NO_WORKER, "No process of this gateway serves at the moment.")
        return found

    def channel(self, index: int) -> grpc.aio.Channel:
        """To a process; the caller closes it."""
        return open_channel(address_in(self._folder, index))

    async def one(self, index: int, call: Call[_T]) -> _T:
        """What a process answers. Raises AioRpcError."""
        async with self.channel(index) as channel:
            return await call(channel)

    async def first(self, call: Call[_T]) -> _T:
        """What one of them answers, for what each knows. Raises AioRpcError, NO_WORKER."""
        return await self.one(self.here[0], call)

    async def all(self, call: Call[_T]) -> list[_T]:
        """What each answers, in order. Raises AioRpcError if one does not, NO_WORKER."""
        return await asyncio.gather(*(self.one(index, call) for index in self.here))
