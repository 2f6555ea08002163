"""Receiver's end of a lane: a worker thread per connection, and the lane that keeps the grants."""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma.api import (
    MAX_RANGES,
    U64,
    ChunkLanded,
    ChunkRefused,
    EndpointSettings,
    Grant,
    LaneEvent,
    LaneLost,
    OnEvent,
)
from tandem.rdma.checksum import HASH_STEP_BYTES, ChunkHasher
from tandem.rdma.faults import Faults
from tandem.rdma.grants import GrantTable, OpenGrant
from tandem.rdma.iov import IovCursor
from tandem.rdma.memory import Memory
from tandem.rdma.stream import READABLE, WRITABLE, Channel, StreamThread, hung_up
from tandem.rdma.wire import FRAME_BYTES, MAX_PIECE_BYTES, Frame, FrameKind, Reply, ReplyKind

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Incoming:
    """The write that a connection is receiving."""

    frame: Frame
    grant: OpenGrant | None
    """None once the write is refused: what is left of it is discarded."""
    cursor: IovCursor
    hasher: ChunkHasher | None
    src: IovCursor | None
    """Where the bytes lie in the sender, for cma."""
    left: int


class Sink(Protocol):
    """How a provider takes a write's bytes."""

    announces_src: bool
    """Whether OPEN carries source offsets."""

    def locate(self, src: U64, lengths: U64) -> IovCursor:
        """Thread: where announced bytes lie in the sender. Raises TandemError(PROTOCOL_VIOLATION)."""

    def take_piece(self, stream: ReceiverStream, write: Incoming, count: int) -> None:
        """Thread: lands or discards the next `count` bytes of a write."""

    def close(self) -> None:
        """Loop, after the last thread: frees what it has."""


@dataclass(frozen=True, slots=True)
class ReceiverParts:
    """What the lane and its workers share."""

    provider: str
    memory: Memory
    settings: EndpointSettings
    sink: Sink
    grants: GrantTable
    faults: Faults


class ReceiverStream(StreamThread):
    """Receives writes one after another over one connection."""

    def __init__(
        self,
        name: str,
        channel: Channel,
        parts: ReceiverParts,
        on_event: Callable[[LaneEvent], None],
        on_end: Callable[[TandemError | None], None],
    ) -> None:
        super().__init__(name, channel, on_end)
        self._parts = parts
        self._on_event = on_event
        self._write: Incoming | None = None

    def work(self) -> None:
        """Takes frames until the lane ends."""
        data = memoryview(bytearray(FRAME_BYTES))
        while True:
            self._read_exactly(data)
            frame = Frame.unpack(bytes(data))
            if (frame.kind is FrameKind.OPEN) != (self._write is None):
                raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"{frame.kind.name} comes out of turn")
            if frame.kind is FrameKind.OPEN:
                self._open(frame)
            elif frame.kind is FrameKind.PIECE:
                self._piece(frame)
            else:
                self._write = None

    def _open(self, frame: Frame) -> None:
        if frame.ranges > MAX_RANGES:
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"{frame.ranges} ranges; {MAX_RANGES} are allowed")
        sink = self._parts.sink
        arrays = np.empty((3 if sink.announces_src else 2, frame.ranges), np.uint64)
        if frame.ranges:
            self._read_exactly(arrays.data.cast("B"))
        dst, lengths = arrays[0], arrays[1]
        nowhere = IovCursor(np.empty((0, 2), np.uint64))
        write = self._write = Incoming(frame, None, nowhere, None, None, frame.size)
        try:
            write.grant = self._parts.grants.admit(GrantId(frame.grant_id), dst, lengths)
        except TandemError as error:
            self.refuse(write, error)
        else:
            iov = self._parts.memory.iov(dst, lengths)
            write.cursor = IovCursor(iov)
            write.hasher = ChunkHasher(iov) if self._parts.settings.checksum else None
            if write.cursor.total != frame.size:
                raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "a write's ranges do not add up to its bytes")
            if sink.announces_src:
                write.src = sink.locate(arrays[2], lengths)
        self._finish_if_whole(write)

    def _piece(self, frame: Frame) -> None:
        write = self._write
        if write is None or frame.size > min(write.left, MAX_PIECE_BYTES):
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"a piece of {frame.size} bytes is too large")
        self._pause_if_planned()
        self._parts.sink.take_piece(self, write, frame.size)
        write.left -= frame.size
        self._finish_if_whole(write)

    def _finish_if_whole(self, write: Incoming) -> None:
        if write.left:
            return
        self._write = None
        if write.grant is None:
            return
        frame = write.frame
        checksum = write.hasher.value() if write.hasher else None
        self.post(
            self._on_event,
            ChunkLanded(GrantId(frame.grant_id), ChunkIndex(frame.chunk), frame.size, checksum),
        )
        self.reply(Reply(ReplyKind.LANDED, frame.write_id, frame.size))

    # ------------------------------------------------------------ for sinks

    def refuse(self, write: Incoming, error: TandemError) -> None:
        """Thread: refuses a write; what is left of it must be discarded."""
        frame = write.frame
        write.grant = None
        self.post(self._on_event, ChunkRefused(GrantId(frame.grant_id), ChunkIndex(frame.chunk), error))
        self.reply(Reply(ReplyKind.REFUSED, frame.write_id, 0, error.reason))

    def enter(self, write: Incoming) -> OpenGrant | None:
        """Thread: the grant that bytes may land under right now; else the write is refused. `leave` it after."""
        if write.grant is None:
            return None
        if write.grant.enter():
            return write.grant
        self.refuse(write, TandemError(ErrorReason.GRANT_CLOSED, f"grant {write.frame.grant_id} was closed"))
        return None

    def landed(self, write: Incoming, count: int) -> None:
        """Thread, inside the grant: `count` bytes landed in the cursor's window."""
        cursor = write.cursor
        self._parts.faults.after_landing(write.frame.chunk, cursor.run_address, cursor.position == 0, count)
        if self._parts.faults.stuck:
            self.stall_if_planned()
        cursor.advance(count)
        hasher = write.hasher
        if hasher and (not cursor.left or cursor.position - hasher.position >= HASH_STEP_BYTES):
            hasher.update_to(cursor.position)

    def stall_if_planned(self) -> None:
        """Thread: a planted fault; ends with the lane only."""
        while self._parts.faults.stalled:
            self.checkpoint()
            if self.channel.wait(select.POLLRDHUP):
                raise hung_up()

    def _pause_if_planned(self) -> None:
        """Thread: a planted fault; whoever wakes the thread, or hangs up, cuts it short."""
        if self._parts.faults.pace_ms:
            self.channel.wait(select.POLLRDHUP, self._parts.faults.pace_ms)
            self.checkpoint()

    def wait_readable(self) -> None:
        """Thread: waits for more bytes."""
        self.checkpoint()
        self.channel.wait(READABLE)
        self.checkpoint()

    def reply(self, reply: Reply) -> None:
        """Thread: answers the sender."""
        view = memoryview(reply.pack())
        while view:
            try:
                view = view[self.channel.write(view, False) :]
            except BlockingIOError:
                self.checkpoint()
                self.channel.wait(WRITABLE)

    def _read_exactly(self, view: memoryview) -> None:
        while view:
            try:
                view = view[self.channel.read_into(view) :]
            except BlockingIOError:
                self.wait_readable()


class LiveReceiverLane:
    """The `ReceiverLane`."""

    def __init__(
        self,
        parts: ReceiverParts,
        socks: Sequence[socket.socket],
        on_event: OnEvent,
        on_gone: Callable[[LiveReceiverLane], None],
    ) -> None:
        self._parts = parts
        self._on_event = on_event
        self._on_gone = on_gone
        self._lost: TandemError | None = None
        self._closing = False
        self._gone = asyncio.Event()
        self._streams = [
            ReceiverStream(f"{self.provider}-receive-{n}", Channel(sock), parts, self._event, self._stream_ended)
            for n, sock in enumerate(socks)
        ]
        for stream in self._streams:
            stream.start()

    @property
    def provider(self) -> str:
        """Name of its provider."""
        return self._parts.provider

    def grant(self, grant_id: GrantId, offsets: U64, lengths: U64) -> Grant:
        """See `ReceiverLane.grant`."""
        if self._closing or self._lost:
            raise self._lost or TandemError(ErrorReason.LINK_LOST, "the lane is closed")
        return self._parts.grants.open(grant_id, offsets, lengths)

    async def close(self) -> None:
        """Revokes every grant and closes. Returns only when no byte can land over the lane any more. Idempotent."""
        self._closing = True
        for stream in self._streams:
            stream.stop()
        await self._gone.wait()
        await self._parts.grants.revoke_all()

    def _event(self, event: LaneEvent) -> None:
        if not self._closing:
            self._on_event(event)

    def _stream_ended(self, error: TandemError | None) -> None:
        if self._lost is None:
            self._lost = error or TandemError(ErrorReason.LINK_LOST, "the lane is closed")
        for stream in self._streams:
            stream.stop()
        if not all(stream.has_ended for stream in self._streams):
            return
        self._parts.sink.close()
        self._gone.set()
        self._on_gone(self)
        if not self._closing:
            _log.warning("%s lane lost: %s", self.provider, self._lost.message)
            self._on_event(LaneLost(self._lost))
