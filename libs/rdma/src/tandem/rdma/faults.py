"""The faults that tests plant in a receiver's landing path."""

from __future__ import annotations

import ctypes
import logging

from tandem.rdma.api import FaultPlan

_log = logging.getLogger(__name__)


class Faults:
    """A plan, and how much of it was carried out. One per lane."""

    def __init__(self, plan: FaultPlan | None) -> None:
        self._plan = plan or FaultPlan()
        self._flips_left = self._plan.flip_times
        self._landed = 0
        self.stuck = False
        """Whether a landing is to stay under way from now on."""
        if plan is not None:
            _log.warning("FAULTS ARE PLANTED in this lane: %s", plan)

    def after_landing(self, chunk: int, address: int, first: bool, count: int) -> None:
        """Thread: bytes landed at an address; `first` says that they are the first of their chunk."""
        self._landed += count
        self.stuck = self.stuck or chunk == self._plan.stall_at_chunk
        if first and chunk == self._plan.flip_byte_of_chunk and self._flips_left > 0:
            self._flips_left -= 1
            byte = ctypes.c_ubyte.from_address(address)
            byte.value ^= 0x01
            _log.warning("fault: flipped a byte of chunk %d", chunk)

    @property
    def pace_ms(self) -> int:
        """How long to wait before each piece."""
        return self._plan.pace_ms

    @property
    def stalled(self) -> bool:
        """Whether the receiver is to stop reading now."""
        limit = self._plan.stall_after_bytes
        return self.stuck or (limit is not None and self._landed >= limit)
