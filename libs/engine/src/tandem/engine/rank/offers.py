"""Offers of pages and the messages that carry them: one, or several parts that continue each other."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import GrantId, RoomId
from tandem.core.pages import I64, MAX_PAGES, PageRuns, pack_runs, unpack_runs
from tandem.core.room.events import Why
from tandem.engine.rank.counters import RankCounters
from tandem.engine.rank.pools import METADATA_POOL, PoolMap
from tandem.rpc import continued
from tandem.v1 import kv_link_pb2

POOL_BYTES: Final = 32
"""More than what surrounds the runs of one pool in a part."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A whole offer. Made by decode, or put together from what decode sent: then nothing in it is checked yet."""

    room: RoomId
    grant_id: GrantId
    nonce: bytes
    runs: Mapping[int, PageRuns]
    """Granted entries of each pool but the metadata pool, in token order; no pool is empty."""
    metadata_row: int
    decode_prefix_len: int

    @property
    def bytes(self) -> int:
        """Memory that its runs take."""
        return sum(runs.starts.nbytes + runs.lengths.nbytes for runs in self.runs.values())

    def unpack(self, theirs: PoolMap, pools: int) -> list[I64]:
        """The granted entries per pool, the metadata row among them.

        Raises TandemError(PROTOCOL_VIOLATION) for pools or entries that the peer's layout does not have.
        """
        entries: list[I64] = [np.empty(0, np.int64) for _ in range(pools)]
        for pool, runs in self.runs.items():
            if pool == METADATA_POOL or pool >= pools:
                raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"offer names pool {pool} wrongly")
            entries[pool] = unpack_runs(runs.starts, runs.lengths, theirs.entries(pool))
        if not 0 <= self.metadata_row < theirs.entries(METADATA_POOL):
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"offer names metadata row {self.metadata_row}")
        entries[METADATA_POOL] = np.array([self.metadata_row], np.int64)
        return entries


def pack_entries(entries: Sequence[I64]) -> dict[int, PageRuns]:
    """entries[p] of every pool p but the metadata pool, packed as runs."""
    return {pool: pack_runs(index) for pool, index in enumerate(entries) if index.size and pool != METADATA_POOL}


class OfferParts:
    """The messages of an offer. It is cut when this is made; each message is made when it is asked for."""

    def __init__(self, offer: Offer, part_bytes: int = continued.PART_BYTES) -> None:
        """part_bytes: what the entries of one message may take."""
        self._offer = offer
        pools = offer.runs.values()
        self._starts = np.concatenate([np.empty(0, np.uint32), *(runs.starts for runs in pools)])
        self._lengths = np.concatenate([np.empty(0, np.uint32), *(runs.lengths for runs in pools)])
        sizes = continued.varint_bytes(self._starts) + continued.varint_bytes(self._lengths)
        room = part_bytes - POOL_BYTES * len(offer.runs)
        self._ends = continued.cut(sizes, room, room)

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[kv_link_pb2.OfferPages]:
        first = 0
        for number, last in enumerate(self._ends):
            yield kv_link_pb2.OfferPages(
                room=self._offer.room,
                grant_id=self._offer.grant_id,
                nonce=self._offer.nonce,
                entries=self._entries(first, last),
                metadata_row=self._offer.metadata_row,
                decode_prefix_len=self._offer.decode_prefix_len,
                part=number,
                more=last < self._starts.size,
            )
            first = last

    def _entries(self, first: int, last: int) -> Iterator[kv_link_pb2.PoolEntries]:
        """Runs first..last - 1 of all pools laid end to end."""
        end = 0
        for pool, runs in self._offer.runs.items():
            begin, end = end, end + runs.starts.size
            here = slice(max(first, begin), min(last, end))
            if here.start < here.stop:
                starts, lengths = self._starts[here].tolist(), self._lengths[here].tolist()
                yield kv_link_pb2.PoolEntries(pool=pool, starts=starts, lengths=lengths)


class OfferCollector:
    """Puts the offers of one link together. Parts of an offer follow each other, so that it holds one at most."""

    def __init__(self, counters: RankCounters, timeout_ms: int, refuse: Callable[[RoomId, GrantId, Why], None]) -> None:
        """timeout_ms: longest wait for the next part. refuse: gets an offer that is given up."""
        self._counters = counters
        self._timeout_s = timeout_ms / 1000
        self._refuse = refuse
        self._first: kv_link_pb2.OfferPages | None = None
        """First part of the unfinished offer."""
        self._parts = 0
        self._runs: dict[int, list[PageRuns]] = {}
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, part: kv_link_pb2.OfferPages) -> Offer | None:
        """Takes a message; returns the offer that it completes. What breaks the rules is refused."""
        if part.part and not self._collects(part.room, part.grant_id):
            self._counters.stale_messages += 1  # the rest of an offer that was given up
            return None
        try:
            if not part.part:
                self._give_up("another offer came between its parts")
                self._first = part
            self._take(part)
        except TandemError as error:
            self._give_up(error.message)
            return None
        if part.more:
            self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._give_up, "its next part is late")
            return None
        offer = Offer(
            room=RoomId(part.room),
            grant_id=GrantId(part.grant_id),
            nonce=part.nonce,
            runs={pool: _joined(runs) for pool, runs in self._runs.items()},
            metadata_row=part.metadata_row,
            decode_prefix_len=part.decode_prefix_len,
        )
        self.close()
        return offer

    def drop(self, room: int) -> None:
        """The room was aborted: what is there of its offer is of no use."""
        if self._first is not None and self._first.room == room:
            self.close()

    def close(self) -> None:
        """Forgets the unfinished offer."""
        if self._timer is not None:
            self._timer.cancel()
        self._first, self._timer = None, None
        self._parts, self._runs, self._count = 0, {}, 0

    def _collects(self, room: int, grant_id: int) -> bool:
        return self._first is not None and (self._first.room, self._first.grant_id) == (room, grant_id)

    def _give_up(self, message: str) -> None:
        if (first := self._first) is not None:
            self.close()
            why = Why(ErrorReason.PROTOCOL_VIOLATION, f"the offer of room {first.room}: {message}")
            self._refuse(RoomId(first.room), GrantId(first.grant_id), why)

    def _take(self, part: kv_link_pb2.OfferPages) -> None:
        """Adds the entries of a part. Raises TandemError(PROTOCOL_VIOLATION) for one that does not fit in."""
        if self._timer is not None:
            self._timer.cancel()
        assert self._first is not None
        if part.part != self._parts or part.part >= continued.MAX_PARTS:
            raise _violation(f"part {part.part} after {self._parts} parts of at most {continued.MAX_PARTS}")
        if not hmac.compare_digest(part.nonce, self._first.nonce):
            raise _violation("its parts have different nonces")
        if _fixed(part) != _fixed(self._first):
            raise _violation("its parts differ in more than their entries")
        self._parts += 1
        for pool, runs in _runs_of(part).items():
            self._runs.setdefault(pool, []).append(runs)
            self._count += runs.starts.size
        if self._count > MAX_PAGES:
            raise _violation(f"more than {MAX_PAGES} runs")


def _fixed(part: kv_link_pb2.OfferPages) -> tuple[int, int]:
    return part.metadata_row, part.decode_prefix_len


def _runs_of(part: kv_link_pb2.OfferPages) -> dict[int, PageRuns]:
    runs: dict[int, PageRuns] = {}
    for entries in part.entries:
        starts, lengths = np.asarray(entries.starts, np.uint32), np.asarray(entries.lengths, np.uint32)
        if entries.pool in runs or not starts.size or starts.size != lengths.size:
            raise _violation(f"pool {entries.pool} has {starts.size} starts and {lengths.size} lengths, or comes twice")
        runs[entries.pool] = PageRuns(starts, lengths)
    return runs


def _joined(runs: list[PageRuns]) -> PageRuns:
    if len(runs) == 1:
        return runs[0]
    return PageRuns(np.concatenate([one.starts for one in runs]), np.concatenate([one.lengths for one in runs]))


def _violation(message: str) -> TandemError:
    return TandemError(ErrorReason.PROTOCOL_VIOLATION, message)
