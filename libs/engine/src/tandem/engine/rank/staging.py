"""Where the engine's pools are not host memory: what happens to a page before it is sent, and after it has landed.

The data path moves host memory, and by RDMA also memory of a GPU (`tandem.engine.rank.gpu_direct`). Else an engine
whose pools lie in a GPU has a mirror of them in host memory (`tandem.engine.rank.mirror`), which the endpoint knows
instead. `Direct` is for pools in host memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from tandem.core.errors import ErrorReason, TandemError
from tandem.engine.rank.cuda import Cuda
from tandem.engine.rank.pools import Pool
from tandem.rdma.api import U64, SenderLane

Places = Sequence[Sequence[int | None]]
"""The GPU that each buffer of each pool lies on; None for the host."""


class Staging(Protocol):
    """Between the engine's pools and the memory of the endpoint. Offsets are those of the endpoint's memory."""

    def over(self, lane: SenderLane) -> SenderLane:
        """Prefill: the lane, with each write preceded by what brings its source pages to the endpoint's memory."""

    def writable(self) -> asyncio.Future[None] | None:
        """Decode: until when pages that the engine has just reserved may not be offered; None = they may be at once.

        The future, and the call, raise TandemError if that can't be told.
        """

    async def upload(self, offsets: U64, lengths: U64) -> None:
        """Decode: brings pages that have landed to the engine's pools. Nothing may land on them meanwhile.

        Raises TandemError if they did not get there.
        """

    async def settle(self) -> None:
        """Decode, after an abort: returns once nothing that has landed can appear in the engine's pools any more.

        Raises TandemError if that can't be told.
        """

    async def close(self) -> None:
        """Waits for what is under way, and frees the memory. The endpoint is closed first. Idempotent."""


class Direct:
    """The endpoint's memory is the engine's: there is nothing to do."""

    def over(self, lane: SenderLane) -> SenderLane:
        """The lane itself."""
        return lane

    def writable(self) -> None:
        """At once."""

    async def upload(self, offsets: U64, lengths: U64) -> None:
        """Nothing: they are there."""

    async def settle(self) -> None:
        """Nothing: what has landed is there."""

    async def close(self) -> None:
        """Nothing: the memory is the engine's."""


DIRECT: Final = Direct()


def places_of(pools: Sequence[Pool], cuda: Cuda) -> Places:
    """Where each buffer lies."""
    return [[cuda.device_of(buffer.address) for buffer in pool.buffers] for pool in pools]


def only_gpu(places: Places) -> int:
    """The one GPU that the pools lie on. Raises TandemError(NOT_SUPPORTED) for none or several."""
    ordinals = {place for pool in places for place in pool if place is not None}
    if len(ordinals) != 1:
        raise TandemError(
            ErrorReason.NOT_SUPPORTED, f"the pools of a rank lie on one GPU, not on {sorted(ordinals) or 'none'}"
        )
    return ordinals.pop()
