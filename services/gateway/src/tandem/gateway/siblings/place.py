"""Where a process stands among those of its gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tandem.core.share import Share

LABEL: Final = "gateway_process"
"""Of every series of a gateway that runs as several processes: which of them it is of."""


@dataclass(frozen=True, slots=True)
class Place:
    """One process of several."""

    share: Share
    folder: Path
    """Where their sockets are; only their user can enter it."""

    @property
    def others(self) -> list[int]:
        """The other processes."""
        return [index for index in range(self.share.count) if index != self.share.index]

    def address(self, index: int) -> str:
        """Where gRPC reaches a process."""
        return address_in(self.folder, index)


def address_in(folder: Path, index: int) -> str:
    """Where gRPC reaches a process of the gateway whose sockets are in a folder."""
    return f"unix:{folder / str(index)}"
