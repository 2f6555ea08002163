"""Sender's end of a lane: a worker thread per connection, and the lane that hands writes to them."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma.api import U64, EndpointSettings, LaneLost, OnEvent, Transfer, TransferStatus
from tandem.rdma.checksum import ChunkHasher
from tandem.rdma.iov import IovCursor
from tandem.rdma.memory import Memory
from tandem.rdma.stream import READABLE, WRITABLE, Channel, StreamThread
from tandem.rdma.transfer import MAX_WRITES, WriteTransfer, checked_ranges
from tandem.rdma.wire import REPLY_BYTES, Frame, FrameKind, Reply, ReplyKind, Welcome

_log = logging.getLogger(__name__)


class Source(Protocol):
    """How a provider gets a write's bytes to the receiver."""

    announces_src: bool
    """Whether OPEN carries source offsets."""
    piece_bytes: int
    """Most bytes in one piece."""

    def send_piece(self, stream: SenderStream, write: WriteTransfer, count: int) -> None:
        """Thread: sends the next `count` bytes of a write."""


@dataclass(frozen=True, slots=True)
class SenderParts:
    """What the lane and its workers share."""

    provider: str
    memory: Memory
    settings: EndpointSettings
    source: Source
    streams: int
    """Connections of the lane."""


class SenderStream(StreamThread):
    """Sends writes one after another over one connection, and reads the receiver's replies meanwhile."""

    flushes = False  # every write has ended by then, so what the kernel still holds is of use to nobody

    def __init__(
        self, name: str, channel: Channel, parts: SenderParts, on_end: Callable[[TandemError | None], None]
    ) -> None:
        super().__init__(name, channel, on_end)
        self.bytes_queued = 0
        """Loop: bytes of the writes that are not settled."""
        self._parts = parts
        self._queue: deque[WriteTransfer] = deque()
        self._open: dict[int, WriteTransfer] = {}
        self._sending: WriteTransfer | None = None
        self._cancelling: deque[WriteTransfer] = deque()
        self._announced: deque[WriteTransfer] = deque()
        self._unread = bytearray()
        self._reading = memoryview(bytearray(64 * REPLY_BYTES))

    # ------------------------------------------------------------ loop

    def submit(self, write: WriteTransfer) -> None:
        """Queues a write."""
        self.bytes_queued += write.total
        write.withdraw = self._withdraw
        self._queue.append(write)
        self.wake()

    def _withdraw(self, write: WriteTransfer) -> None:
        try:
            self._queue.remove(write)
        except ValueError:
            self._cancelling.append(write)
            self.wake()
        else:
            self._settle(write, TransferStatus.CANCELLED, None)

    def _settle(self, write: WriteTransfer, status: TransferStatus, error: TandemError | None) -> None:
        self.bytes_queued -= write.total
        write.settle(status, error)

    # ------------------------------------------------------------ thread

    def work(self) -> None:
        """Sends what is queued until the lane ends."""
        while True:
            try:
                write = self._queue.popleft()
            except IndexError:
                self.pump(READABLE)
            else:
                self._transmit(write)

    def _transmit(self, write: WriteTransfer) -> None:
        self._open[write.write_id] = self._sending = write
        self._announce(write)
        iov = self._parts.memory.iov(write.ranges.src, write.ranges.lengths)  # while the receiver checks the ranges
        write.cursor = IovCursor(iov)
        write.hasher = ChunkHasher(iov) if self._parts.settings.checksum else None
        piece_bytes = self._parts.source.piece_bytes
        while write.left and not write.cancelled and write.refusal is None:
            count = min(piece_bytes, write.left)
            self._parts.source.send_piece(self, write, count)
            write.sent += count
            self._read_replies()
            self.checkpoint()
        if write.left:
            self.send(Frame(FrameKind.ABANDON, write.write_id).pack())
        self._sending = None
        if write.refusal is not None:
            self._finish(write, TransferStatus.REFUSED, write.refusal)
        self._finish_cancelled()

    def _announce(self, write: WriteTransfer) -> None:
        ranges = write.ranges
        frame = Frame(
            FrameKind.OPEN, write.write_id, write.total, int(ranges.lengths.size), int(write.grant_id), int(write.chunk)
        )
        self.send(frame.pack(), more=True)
        for array in [ranges.dst, ranges.lengths] + ([ranges.src] if self._parts.source.announces_src else []):
            if array.size:
                self.send(array.data.cast("B"))

    def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Thread: sends all of it."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.channel.write(view, more) :]
            except BlockingIOError:
                self.pump(READABLE | WRITABLE)

    def pump(self, events: int) -> None:
        """Thread: waits for the socket or the loop; takes replies and cancellations in."""
        self.checkpoint()
        if self.channel.wait(events, self._fence_timeout_ms()) & ~WRITABLE:
            self._read_replies()
        self._finish_cancelled()
        self.checkpoint()

    def announced(self, write: WriteTransfer) -> None:
        """Thread: the peer may read a piece of this write, until its reply PULLED."""
        write.outstanding += 1
        self._announced.append(write)

    @property
    def pieces_announced(self) -> int:
        """Thread: pieces that the peer may still be reading."""
        return len(self._announced)

    def _read_replies(self) -> None:
        try:
            while True:
                self._unread += self._reading[: self.channel.read_into(self._reading)]
        except BlockingIOError:
            pass
        whole = len(self._unread) // REPLY_BYTES * REPLY_BYTES
        for start in range(0, whole, REPLY_BYTES):
            self._take(Reply.unpack(self._unread[start : start + REPLY_BYTES]))
        del self._unread[:whole]

    def _take(self, reply: Reply) -> None:
        if reply.kind is ReplyKind.PULLED:
            if not self._announced:
                raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "the receiver pulled what was not announced")
            self._announced.popleft().outstanding -= 1
            return
        write = self._open.get(reply.write_id)
        if write is None:
            return  # cancelled meanwhile
        if reply.kind is ReplyKind.LANDED:
            if write.left or reply.size != write.total:
                raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "the receiver claims bytes that were not sent")
            self._finish(write, TransferStatus.DONE, None)
            return
        reason = reply.reason or ErrorReason.INTERNAL
        write.refusal = TandemError(
            reason, f"the receiver refused chunk {write.chunk} of grant {write.grant_id}: {reason.value}"
        )
        if write is not self._sending:
            self._finish(write, TransferStatus.REFUSED, write.refusal)

    def _finish(self, write: WriteTransfer, status: TransferStatus, error: TandemError | None) -> None:
        if self._open.pop(write.write_id, None) is not None:
            self.post(self._settle, write, status, error)

    def _finish_cancelled(self) -> None:
        for _ in range(len(self._cancelling)):
            write = self._cancelling.popleft()
            if write.write_id not in self._open and write is not self._sending:
                continue
            if write is not self._sending and not write.outstanding:
                self._finish(write, TransferStatus.CANCELLED, None)
            elif time.monotonic_ns() >= write.fence_at_ns:
                raise TandemError(ErrorReason.LINK_LOST, "a cancelled write did not end in time; its lane was closed")
            else:
                self._cancelling.append(write)

    def _fence_timeout_ms(self) -> int | None:
        if not self._cancelling:
            return None
        next_ns = min(write.fence_at_ns for write in list(self._cancelling)) - time.monotonic_ns()
        return max(0, -(-next_ns // 1_000_000))


class LiveSenderLane:
    """The `SenderLane`: usable at once; its writes wait until every connection is attached."""

    def __init__(self, parts: SenderParts, on_event: OnEvent, on_gone: Callable[[LiveSenderLane], None]) -> None:
        self._parts = parts
        self._on_event = on_event
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._slots: list[SenderStream | None] = [None] * parts.streams
        self._claimed: set[int] = set()
        self._writes: dict[int, WriteTransfer] = {}
        self._next_write = 0
        self._lost: TandemError | None = None
        self._closing = False
        self._gone = asyncio.Event()
        patience_s = 2 * parts.settings.connect_timeout_ms / 1000
        self._patience = self._loop.call_later(patience_s, self._nobody_came)

    @property
    def provider(self) -> str:
        """Name of its provider."""
        return self._parts.provider

    # ------------------------------------------------------------ opening

    def claim(self, stream: int) -> bool:
        """Takes the place of one connection; False if there is none, or it is taken."""
        free = stream < self._parts.streams and stream not in self._claimed and not self._ending
        if free:
            self._claimed.add(stream)
        return free

    @property
    def fully_claimed(self) -> bool:
        """Whether every connection has come."""
        return len(self._claimed) == self._parts.streams

    def welcome(self, stream: int) -> bytes:
        """What a connection is answered at the door: for cma, with this side's buffers."""
        parts = self._parts
        if not parts.source.announces_src or stream:
            return Welcome(True, parts.streams, 0).pack()
        table = parts.memory.table()
        return Welcome(True, parts.streams, table.shape[0]).pack() + table.tobytes()

    def attach(self, stream: int, sock: socket.socket) -> None:
        """Brings a claimed connection to life."""
        if self._ending:
            sock.close()
            return
        worker = SenderStream(f"{self.provider}-send-{stream}", Channel(sock), self._parts, self._stream_ended)
        self._slots[stream] = worker
        worker.start()
        if all(self._slots):
            self._patience.cancel()
            for write in self._writes.values():
                self._dispatch(write)

    def _nobody_came(self) -> None:
        self._fail(TandemError(ErrorReason.LINK_LOST, "the receiver did not connect in time"))

    # ------------------------------------------------------------ writing

    def write(self, src: U64, dst: U64, lengths: U64, grant_id: GrantId, chunk: ChunkIndex) -> Transfer:
        """See `SenderLane.write`; raises TandemError(OVERLOADED) too, if MAX_WRITES are under way."""
        if self._ending:
            raise self._lost or TandemError(ErrorReason.LINK_LOST, "the lane is closed")
        if len(self._writes) >= MAX_WRITES:
            raise TandemError(ErrorReason.OVERLOADED, f"{MAX_WRITES} writes are under way on this lane")
        ranges = checked_ranges(self._parts.memory, src, dst, lengths, grant_id, chunk)
        self._next_write += 1
        write = WriteTransfer(self._next_write, ranges, grant_id, chunk, self._parts.settings.fence_ms)
        write.withdraw = self._withdraw_waiting
        write.on_settled = self._forget
        self._writes[write.write_id] = write
        if all(self._slots):
            self._dispatch(write)
        return write

    def _dispatch(self, write: WriteTransfer) -> None:
        """A write stays on one connection, the one with the least to do."""
        min((slot for slot in self._slots if slot), key=lambda slot: slot.bytes_queued).submit(write)

    def _withdraw_waiting(self, write: WriteTransfer) -> None:
        write.settle(TransferStatus.CANCELLED)

    def _forget(self, write: WriteTransfer) -> None:
        self._writes.pop(write.write_id, None)

    # ------------------------------------------------------------ ending

    @property
    def _ending(self) -> bool:
        return self._closing or self._lost is not None

    async def close(self) -> None:
        """Cancels what is under way and closes. Idempotent."""
        if not self._ending:
            self._closing = True
            for write in list(self._writes.values()):
                write.ask_to_stop()
            for write in list(self._writes.values()):
                await write.wait()
            self._stop()
        await self._gone.wait()

    def _fail(self, error: TandemError) -> None:
        if self._lost is None:
            self._lost = error
            self._stop()

    def _stop(self) -> None:
        self._patience.cancel()
        live = [slot for slot in self._slots if slot]
        for slot in live:
            slot.stop()
        if not live:
            self._loop.call_soon(self._finish)

    def _stream_ended(self, error: TandemError | None) -> None:
        self._slots = [slot if slot and not slot.has_ended else None for slot in self._slots]
        self._fail(error or TandemError(ErrorReason.LINK_LOST, "the lane is closed"))
        if not any(self._slots):
            self._finish()

    def _finish(self) -> None:
        """No thread of the lane is left, so nothing of its sources is read."""
        if self._gone.is_set():
            return
        self._gone.set()
        error = self._lost or TandemError(ErrorReason.LINK_LOST, "the lane is closed")
        for write in list(self._writes.values()):
            if write.cancelled:
                write.settle(TransferStatus.CANCELLED)
            else:
                write.settle(TransferStatus.FAILED, error)
        self._on_gone(self)
        if not self._closing:
            _log.warning("%s lane lost: %s", self.provider, error.message)
            self._on_event(LaneLost(error))
