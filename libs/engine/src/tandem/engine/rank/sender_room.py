"""Prefill's side of a room: pushes finished chunks under decode's grant."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import ChunkIndex, GrantId
from tandem.core.pages import I64, Ranges
from tandem.core.room.events import (
    Broken,
    ChunkMoved,
    ChunkReady,
    Effect,
    LandedByPeer,
    Offer,
    Quiet,
    SendChunkDone,
    SendComplete,
    StartTransfer,
    Why,
)
from tandem.core.room.sender import Sender
from tandem.core.room.timeline import RoomSpan, Step
from tandem.core.version import Feature
from tandem.engine.port import Ticket
from tandem.engine.rank.handles import SenderHandle
from tandem.engine.rank.link import KvLink
from tandem.engine.rank.pools import KV_POOL, METADATA_POOL, concat
from tandem.engine.rank.rooms import RoomHost, RoomShell
from tandem.rdma.api import Transfer, TransferResult, TransferStatus
from tandem.v1 import kv_link_pb2


@dataclass(frozen=True, slots=True)
class Chunk:
    """One finished chunk: source entries per pool, in token order."""

    entries: tuple[I64, ...]
    last: bool
    kv_buffers: I64 | None = None
    """Buffers of the KV pool that it is of; None = all."""


class SenderRoom(RoomShell):
    """Shell of `tandem.core.room.sender.Sender`."""

    def __init__(self, ticket: Ticket, host: RoomHost) -> None:
        self._sender = Sender(ticket.deadline)
        super().__init__(ticket, self._sender, host)
        self._chunks: list[Chunk] = []
        self._granted: list[I64] = []
        self._used: list[I64] = []
        """Granted entries that are written, per pool and buffer."""
        self._transfers: set[Transfer] = set()
        self.decode_prefix_len = 0
        """Prompt tokens that decode holds already; valid once it has offered."""
        self._granted_s = self._began_s = self._computed_s = 0.0
        """When decode offered, the engine began to compute, and had computed all; on the timeline, 0 = not known."""
        if self._timeline is not None:
            self._timeline.begin(Step.GRANT_WAIT)

    @property
    def granted_pages(self) -> int:
        """Pages that decode has granted."""
        return int(self._granted[KV_POOL].size) if self._granted else 0

    @property
    def bytes_moved(self) -> int:
        """Bytes of finished chunks."""
        return self._sender.bytes_moved

    def offered(self, link: KvLink, grant_id: GrantId, granted: Sequence[I64], decode_prefix_len: int) -> None:
        """Decode granted these entries of its pools, over this link."""
        if self.link is not None:
            self.feed(Offer(grant_id))  # refused and counted: one room, one grant
            return
        self.link = link
        link.rooms.add(self.room)
        self._granted = list(granted)
        self._used = [np.zeros(self._host.pools.buffers(pool), np.int64) for pool in range(len(self._granted))]
        self.decode_prefix_len = decode_prefix_len
        if self._timeline is not None:
            self._timeline.end(Step.GRANT_WAIT)
            self._granted_s = self._timeline.now()
        self.feed(Offer(grant_id))

    def _publish(self) -> None:
        if isinstance(self._handle, SenderHandle):
            self._handle.decode_prefix_len = self.decode_prefix_len
        super()._publish()

    def push(self, chunk: Chunk) -> None:
        """The engine finished a chunk."""
        self._begin()
        if chunk.last and self._timeline is not None:
            self._computed_s = self._timeline.now()
        self._chunks.append(chunk)
        self.feed(ChunkReady(ChunkIndex(len(self._chunks) - 1), chunk.last))

    def began(self, at_s: float) -> None:
        """The engine began to compute the prompt, at a time of the rank's clock."""
        if self._timeline is not None:
            self._began_s = max(0.0, self._timeline.now() - (self._loop.time() - at_s))

    def landed(self, grant_id: GrantId) -> None:
        """Decode verified the room."""
        if self._timeline is not None:
            self._timeline.end(Step.LANDING)
        self.feed(LandedByPeer(grant_id))

    def act(self, effect: Effect) -> None:
        """Carries out what only a sender does."""
        match effect:
            case StartTransfer(chunk):
                self._start(chunk)
            case SendChunkDone(chunk, size, checksum):
                if Feature.CHUNK_CHECKSUM not in self._live_link().features:
                    checksum = None
                done = kv_link_pb2.ChunkDone(
                    room=self.room,
                    grant_id=self.grant_id,
                    chunk=chunk,
                    bytes=size,
                    checksum=checksum or 0,
                    has_checksum=checksum is not None,
                )
                self._live_link().send(chunk_done=done)
            case SendComplete(chunks, size):
                complete = kv_link_pb2.Complete(room=self.room, grant_id=self.grant_id, chunks=chunks, bytes=size)
                if self._timeline is not None:
                    self._timeline.begin(Step.LANDING)
                self._live_link().send(complete=complete)
            case _:
                raise AssertionError(f"a sender can't {effect}")

    def _live_link(self) -> KvLink:
        if self.link is None:
            raise TandemError(ErrorReason.LINK_LOST, "the room has no link")
        return self.link

    def _start(self, index: ChunkIndex) -> None:
        link = self._live_link()
        if link.sender_lane is None:
            raise TandemError(ErrorReason.LINK_LOST, "the link has no lane")
        chunk = self._chunks[index]
        ranges = self._ranges(chunk, link)
        if self._timeline is not None:
            pages, buffers = int(chunk.entries[KV_POOL].size), chunk.kv_buffers
            if buffers is None:
                self._timeline.begin(Step.CHUNK, chunk=index, pages=pages, provider=link.provider)
            else:
                self._timeline.begin_buffers(index, pages, link.provider, int(buffers.min()), int(buffers.size))
        transfer = link.sender_lane.write(ranges.src, ranges.dst, ranges.lengths, GrantId(self.grant_id), index)
        self._transfers.add(transfer)
        self._host.spawn(self._finish(transfer, index), f"chunk {index} of {self.room}")

    def _ranges(self, chunk: Chunk, link: KvLink) -> Ranges:
        """Byte ranges from the chunk's entries to the next granted ones of each pool."""
        parts = []
        for pool, source in enumerate(chunk.entries):
            if not source.size:
                continue
            buffers = chunk.kv_buffers if pool == KV_POOL else None
            target = self._next_granted(pool, source.size, buffers)
            parts.append(self._host.pools.move(link.peer_pools, pool, source, target, buffers))
        left = [granted.size - int(used.min()) for granted, used in zip(self._granted, self._used, strict=True)]
        if chunk.last and any(left):
            raise TandemError(
                ErrorReason.PROTOCOL_VIOLATION, f"the last chunk leaves granted entries unwritten, per pool: {left}"
            )
        return concat(parts)

    def _next_granted(self, pool: int, count: int, buffers: I64 | None) -> I64:
        """The granted entries that come next in these buffers, which all stand at the same one."""
        used = self._used[pool]
        chosen: slice | I64 = slice(None)
        if buffers is not None:
            named = buffers.tolist()
            if not named or len(set(named)) != len(named) or not set(named) <= set(range(used.size)):
                text = f"buffers {named} of the {used.size} of pool {pool}"
                raise TandemError(ErrorReason.PROTOCOL_VIOLATION, text)
            chosen = buffers
        first = int(used[chosen][0])
        if (used[chosen] != first).any():
            text = f"buffers of pool {pool} are not at the same entry: {used[chosen].tolist()}"
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, text)
        used[chosen] = first + count
        return self._granted[pool][first : first + count]

    async def _finish(self, transfer: Transfer, index: ChunkIndex) -> None:
        result = await transfer.wait()
        self._transfers.discard(transfer)
        self._note_moved(index, result)
        if result.status is TransferStatus.DONE:
            if self.link is not None:
                self.link.measures.moved(result.bytes, result.elapsed_ns / 1e9)
            self.feed(ChunkMoved(index, result.bytes, result.checksum))
        elif self.link is not None and self.link.down is not None:
            self.feed(Broken(self.link.down))  # the link's end is the cause, not the chunk's
        else:
            error = result.error or TandemError(ErrorReason.TRANSFER_FAILED, f"chunk {index}: {result.status.value}")
            self.feed(Broken(Why(error.reason, error.message)))

    def _note_moved(self, index: ChunkIndex, result: TransferResult) -> None:
        if self._timeline is not None:
            reason = None if result.status is TransferStatus.DONE else ErrorReason.TRANSFER_FAILED
            reason = result.error.reason if result.error is not None else reason
            self._timeline.end(Step.CHUNK, chunk=index, moved=result.bytes, reason=reason)

    def _note_compute(self, why: Why | None) -> None:
        """Notes the engine's part, which is known only now: it may say late when it began."""
        timeline, granted, began = self._timeline, self._granted_s, self._began_s
        if timeline is None or not (began or granted):
            return
        reason = why.reason if why is not None and not self._computed_s else None
        if began and granted < began:
            timeline.note(RoomSpan(Step.QUEUE, granted, began))
        if began or self._computed_s:
            start = began or granted
            timeline.note(RoomSpan(Step.COMPUTE, start, max(start, self._computed_s or timeline.now()), reason=reason))
        else:
            timeline.note(RoomSpan(Step.QUEUE, granted, timeline.now(), reason=reason))

    def _end(self, why: Why | None) -> None:
        self._note_compute(why)
        if why is None:
            rows = sum(int(chunk.entries[METADATA_POOL].size) for chunk in self._chunks)
            metadata = rows * self._host.pools.entry_bytes(METADATA_POOL)
            self._host.counters.metadata_bytes += metadata
            self._host.counters.kv_bytes += self.bytes_moved - metadata
            self._host.counters.kv_chunks += len(self._chunks)
        super()._end(why)

    async def _quiesce(self) -> None:
        await asyncio.gather(*(transfer.cancel() for transfer in self._transfers))
        self.feed(Quiet())


def chunk_of(
    kv_pages: I64,
    state_pages: Sequence[I64 | None],
    metadata_row: int | None,
    pools: int,
    *,
    last: bool,
    kv_buffers: I64 | None = None,
) -> Chunk:
    """Source entries of a chunk, one array per pool."""
    entries = [np.empty(0, np.int64) for _ in range(pools)]
    entries[0] = kv_pages
    if metadata_row is not None:
        entries[METADATA_POOL] = np.array([metadata_row], np.int64)
    for component, pages in enumerate(state_pages):
        if pages is not None:
            entries[METADATA_POOL + 1 + component] = pages
    return Chunk(tuple(entries), last, kv_buffers)
