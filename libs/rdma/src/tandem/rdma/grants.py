"""Grants: what a peer may write, whether it still may, and the certainty that nothing lands any more.

Threads that land bytes call `enter` before each system call and `leave` after it. `revoke` closes the grant, so that no
further call enters, and waits for those inside to leave. The calls inside are short: they never wait for the peer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import GrantId
from tandem.rdma.api import MAX_RANGES, U64
from tandem.rdma.memory import Memory, as_offsets

MAX_OPEN_GRANTS = 1 << 16
"""Most grants that are open on one lane."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A set of bytes as sorted intervals [starts, ends) that neither overlap nor touch."""

    starts: U64
    ends: U64
    bytes: int

    def contains(self, offsets: U64, lengths: U64) -> bool:
        """Whether every range lies inside."""
        if not offsets.size:
            return True
        if not self.starts.size:
            return False
        at = np.searchsorted(self.starts, offsets, "right")
        if not at.all():
            return False
        end = self.ends[at - 1]
        return bool((offsets <= end).all() and (lengths <= end - offsets).all())


def extent_of(offsets: U64, lengths: U64) -> Extent:
    """The bytes of some ranges, in any order. Raises TandemError(INVALID_ARGUMENT) if two of them overlap."""
    some = lengths > 0
    offsets, lengths = offsets[some], lengths[some]
    order = np.argsort(offsets, kind="stable")
    starts = offsets[order]
    ends = starts + lengths[order]
    if bool((ends[:-1] > starts[1:]).any()):
        raise TandemError(ErrorReason.INVALID_ARGUMENT, "ranges of a grant overlap")
    apart = ends[:-1] != starts[1:]
    first = np.concatenate(([True], apart)) if starts.size else np.empty(0, bool)
    last = np.concatenate((apart, [True])) if starts.size else np.empty(0, bool)
    return Extent(starts[first], ends[last], int(lengths.sum(dtype=np.uint64)))


class OpenGrant:
    """Leave to write some ranges; the `Grant` that a receiver's lane hands out."""

    def __init__(self, grant_id: GrantId, extent: Extent, forget: Callable[[GrantId], None]) -> None:
        self.extent = extent
        self._grant_id = grant_id
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._closed = False
        self._inside = 0
        self._landed = 0
        self._quiet: asyncio.Future[None] = self._loop.create_future()

    @property
    def grant_id(self) -> GrantId:
        """Its number."""
        return self._grant_id

    @property
    def bytes_landed(self) -> int:
        """Bytes that were written under it."""
        return self._landed

    def enter(self) -> bool:
        """Any thread: may bytes land now? If so, `leave` must follow."""
        with self._lock:
            if self._closed:
                return False
            self._inside += 1
            return True

    def leave(self, landed: int) -> None:
        """Any thread: ends what `enter` began, after `landed` bytes."""
        with self._lock:
            self._inside -= 1
            self._landed += landed
            quiet = self._closed and not self._inside
        if quiet:
            self._loop.call_soon_threadsafe(self._settle)

    def close(self) -> None:
        """Loop: no further landing may begin. `revoke` also waits for those that have begun."""
        with self._lock:
            self._closed = True
            quiet = not self._inside
        self._forget(self._grant_id)
        if quiet:
            self._settle()

    async def revoke(self) -> None:
        """Closes the grant. Returns only when no byte can land under it any more. Idempotent."""
        self.close()
        await asyncio.shield(self._quiet)

    def _settle(self) -> None:
        if not self._quiet.done():
            self._quiet.set_result(None)


class GrantTable:
    """The open grants of one lane. Changed on the loop only; threads look grants up."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._grants: dict[GrantId, OpenGrant] = {}

    def open(self, grant_id: GrantId, offsets: U64, lengths: U64) -> OpenGrant:
        """Opens a grant. Raises TandemError: INVALID_ARGUMENT, or OVERLOADED if too many are open."""
        offsets, lengths = as_offsets(offsets), as_offsets(lengths)
        if offsets.size != lengths.size or offsets.size > MAX_RANGES:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT,
                f"{offsets.size} offsets and {lengths.size} lengths; equal counts up to {MAX_RANGES} are allowed",
            )
        if not self._memory.contains(offsets, lengths):
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT, f"a range leaves the local memory of {self._memory.bytes} bytes"
            )
        if grant_id in self._grants:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, f"grant {grant_id} is open on this lane already")
        if len(self._grants) >= MAX_OPEN_GRANTS:
            raise TandemError(ErrorReason.OVERLOADED, f"{MAX_OPEN_GRANTS} grants are open on this lane")
        grant = OpenGrant(grant_id, extent_of(offsets, lengths), self._remove)
        self._grants[grant_id] = grant
        return grant

    def has(self, grant_id: GrantId) -> bool:
        """Whether a grant is open."""
        return grant_id in self._grants

    def _remove(self, grant_id: GrantId) -> None:
        self._grants.pop(grant_id, None)

    def admit(self, grant_id: GrantId, dst: U64, lengths: U64) -> OpenGrant:
        """Any thread: the grant that covers a write.

        Raises TandemError: GRANT_CLOSED if it is not open, OUT_OF_GRANT if a range leaves it or there are more bytes
        than it has.
        """
        grant = self._grants.get(grant_id)
        if grant is None:
            raise TandemError(ErrorReason.GRANT_CLOSED, f"grant {grant_id} is not open on this lane")
        extent = grant.extent
        if not extent.contains(dst, lengths) or int(lengths.sum(dtype=np.uint64)) > extent.bytes:
            raise TandemError(ErrorReason.OUT_OF_GRANT, f"the write leaves the ranges of grant {grant_id}")
        return grant

    async def revoke_all(self) -> None:
        """Revokes every grant."""
        for grant in list(self._grants.values()):
            await grant.revoke()
