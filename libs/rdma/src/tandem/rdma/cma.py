"""Provider `cma` (cross-memory attach): the sender announces where pages lie, and the receiver, on the same host,
pulls them with process_vm_readv. Nobody but the receiver ever writes the receiver's memory.

A receiver that is stuck can't be stopped from reading by its sender. So it looks at the lane after each pull and
before it counts the bytes: what it read after its sender closed the lane is never reported as landed.
"""

from __future__ import annotations

from typing import Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.api import U64
from tandem.rdma.iov import IovCursor
from tandem.rdma.memory import Memory
from tandem.rdma.pull import Span, helper_if_useful
from tandem.rdma.receiver import Incoming, ReceiverStream
from tandem.rdma.sender import SenderStream
from tandem.rdma.stream import READABLE
from tandem.rdma.transfer import WriteTransfer
from tandem.rdma.wire import MAX_PIECE_BYTES, Frame, FrameKind, Reply, ReplyKind

_PIECES_AHEAD: Final = 2
"""Most pieces announced and not pulled: enough to keep the receiver busy, few enough to cancel soon."""
_PULL_BYTES: Final = 8 << 20
"""Most bytes in one pull, which is what a revocation waits for: about a millisecond."""
_HASHED_PULL_BYTES: Final = 1 << 20
"""Most bytes in one pull if they are hashed after it: they should still be in the cache."""


class CmaSource:
    """Sender: announces pages."""

    announces_src = True
    piece_bytes = MAX_PIECE_BYTES

    def send_piece(self, stream: SenderStream, write: WriteTransfer, count: int) -> None:
        """Thread: announces the next `count` bytes of a write, and hashes them while the receiver pulls."""
        while stream.pieces_announced >= _PIECES_AHEAD:
            stream.pump(READABLE)
        stream.send(Frame(FrameKind.PIECE, write.write_id, count).pack())
        stream.announced(write)
        if write.hasher:
            write.hasher.update_to(write.sent + count)


class CmaSink:
    """Receiver: pulls announced pages into granted ones."""

    announces_src = True

    def __init__(self, pid: int, memory: Memory) -> None:
        """`memory` is the sender's, by the table that it showed."""
        self._pid = pid
        self._memory = memory
        self._helper = helper_if_useful()
        self._spans: tuple[Incoming, Span, Span] | None = None

    def close(self) -> None:
        """Ends the helper thread; no piece may be taken any more."""
        if self._helper is not None:
            self._helper.close()
            self._helper = None

    def locate(self, src: U64, lengths: U64) -> IovCursor:
        """Thread: where announced bytes lie in the sender."""
        if not self._memory.contains(src, lengths):
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "the sender announced bytes outside its memory")
        return IovCursor(self._memory.iov(src, lengths))

    def take_piece(self, stream: ReceiverStream, write: Incoming, count: int) -> None:
        """Thread: pulls or ignores the next `count` bytes of a write."""
        step = _HASHED_PULL_BYTES if write.hasher else _PULL_BYTES
        while count:
            stream.checkpoint()
            stream.stall_if_planned()
            pulled = self._land(stream, write, min(count, step))
            if not pulled:
                break
            count -= pulled
        stream.reply(Reply(ReplyKind.PULLED, write.frame.write_id))

    def _land(self, stream: ReceiverStream, write: Incoming, count: int) -> int:
        """Returns the bytes that landed, 0 if the write is refused."""
        grant = stream.enter(write)
        if grant is None:
            return 0
        landed = 0
        try:
            got = self._pull(write, write.cursor.position, write.cursor.position + count)
            stream.channel.require_alive()
            if got == count:
                write.cursor.window(count)
                stream.landed(write, count)
                landed = count
        finally:
            grant.leave(landed)
        if not landed:
            stream.refuse(write, TandemError(ErrorReason.TRANSFER_FAILED, "a page of the sender can't be read"))
        return landed

    def _pull(self, write: Incoming, start: int, end: int) -> int:
        own, other = self._spans_of(write)
        try:
            return self._helper.pull(own, other, start, end) if self._helper else own.pull(start, end)
        except OSError as error:
            raise TandemError(
                ErrorReason.LINK_LOST, f"the sender's memory can't be read any more: {error.strerror}"
            ) from error

    def _spans_of(self, write: Incoming) -> tuple[Span, Span]:
        if self._spans is None or self._spans[0] is not write:
            if write.src is None:
                raise TandemError(ErrorReason.INTERNAL, "a cma write has no source")
            own = Span(self._pid, write.cursor.fork(), write.src)
            self._spans = (write, own, Span(self._pid, write.cursor.fork(), write.src.fork()))
        return self._spans[1:]
