"""Where the engine's pools are not host memory: what happens to a page before it is sent, and after it has landed.

The data path moves host memory. An engine whose pools lie in a GPU has a mirror of them in host memory
(`tandem.engine.rank.mirror`), which the endpoint knows instead; `Direct` is for pools that the endpoint reaches itself.
"""

from __future__ import annotations

from typing import Final, Protocol

from tandem.rdma.api import U64, SenderLane


class Staging(Protocol):
    """Between the engine's pools and the memory of the endpoint. Offsets are those of the endpoint's memory."""

    def over(self, lane: SenderLane) -> SenderLane:
        """Prefill: the lane, with each write preceded by what brings its source pages to the endpoint's memory."""

    async def upload(self, offsets: U64, lengths: U64) -> None:
        """Decode: brings pages that have landed to the engine's pools. Nothing may land on them meanwhile.

        Raises TandemError if they did not get there.
        """

    async def close(self) -> None:
        """Waits for what is under way, and frees the memory. The endpoint is closed first. Idempotent."""


class Direct:
    """The endpoint's memory is the engine's: there is nothing to do."""

    def over(self, lane: SenderLane) -> SenderLane:
        """The lane itself."""
        return lane

    async def upload(self, offsets: U64, lengths: U64) -> None:
        """Nothing: they are there."""

    async def close(self) -> None:
        """Nothing: the memory is the engine's."""


DIRECT: Final = Direct()
