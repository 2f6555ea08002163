"""Provider `cma` (cross-memory attach): the sender announces where pages lie, and the receiver, on the same host,
pulls them with process_vm_readv. Nobody but the receiver ever writes the receiver's memory.

A receiver that is stuck can't be stopped from reading by its sender. So it looks at the lane after each pull and
before it counts the bytes: what it read after its sender closed the lane is never reported as landed.
"""

from __future__ import annotations

import errno
from typing import Final

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.api import U64
from tandem.rdma.iov import IovCursor, pull
from tandem.rdma.memory import Memory
from tandem.rdma.receiver import Incoming, ReceiverStream
from tandem.rdma.sender import SenderStream
from tandem.rdma.stream import READABLE
from tandem.rdma.transfer import WriteTransfer
from tandem.rdma.wire import PIECE_BYTES, Frame, FrameKind, Reply, ReplyKind

_PIECES_AHEAD: Final = 4
"""Most pieces announced and not pulled: enough to keep the receiver busy, few enough to cancel soon."""
_PULL_BYTES: Final = PIECE_BYTES
"""Most bytes in one pull."""


class CmaSource:
    """Sender: announces pages."""

    announces_src = True

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

    def locate(self, src: U64, lengths: U64) -> IovCursor:
        """Thread: where announced bytes lie in the sender."""
        if not self._memory.contains(src, lengths):
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "the sender announced bytes outside its memory")
        return IovCursor(self._memory.iov(src, lengths))

    def take_piece(self, stream: ReceiverStream, write: Incoming, count: int) -> None:
        """Thread: pulls or ignores the next `count` bytes of a write."""
        while count:
            stream.checkpoint()
            stream.stall_if_planned()
            pulled = self._pull(stream, write, min(count, _PULL_BYTES))
            if not pulled:
                break
            count -= pulled
        stream.reply(Reply(ReplyKind.PULLED, write.frame.write_id))

    def _pull(self, stream: ReceiverStream, write: Incoming, most_bytes: int) -> int:
        """Returns the bytes that landed, 0 if the write is refused."""
        src = write.src
        grant = stream.enter(write)
        if grant is None or src is None:
            return 0
        landed = 0
        try:
            wanted = src.window(write.cursor.window(most_bytes))
            got = self._read(write, src)
            stream.channel.require_alive()
            if got == wanted:
                stream.landed(write, got)
                src.advance(got)
                landed = got
        finally:
            grant.leave(landed)
        if not landed:
            stream.refuse(write, TandemError(ErrorReason.TRANSFER_FAILED, "a page of the sender can't be read"))
        return landed

    def _read(self, write: Incoming, src: IovCursor) -> int:
        try:
            return pull(self._pid, write.cursor, src)
        except OSError as error:
            if error.errno == errno.EFAULT:
                return 0
            raise TandemError(
                ErrorReason.LINK_LOST, f"the sender's memory can't be read any more: {error.strerror}"
            ) from error
