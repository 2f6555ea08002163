"""Provider `tcp`: payload travels on the lane's connections, from the source pages to the granted pages by
writev/readv, with no copy in between but the kernel's."""

from __future__ import annotations

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.rdma.api import U64
from tandem.rdma.checksum import HASH_STEP_BYTES
from tandem.rdma.iov import IovCursor, readv, writev
from tandem.rdma.receiver import Incoming, ReceiverStream
from tandem.rdma.sender import SenderStream
from tandem.rdma.stream import READABLE, WRITABLE, hung_up
from tandem.rdma.transfer import WriteTransfer
from tandem.rdma.wire import Frame, FrameKind

_PIECE_BYTES = 4 << 20
"""A cancelled write ends with its piece: small enough to end soon, large enough to cost nothing."""
_DISCARD_BYTES = 256 * 1024


class TcpSource:
    """Sender: writes pages to the connection."""

    announces_src = False
    piece_bytes = _PIECE_BYTES

    def send_piece(self, stream: SenderStream, write: WriteTransfer, count: int) -> None:
        """Thread: sends the next `count` bytes of a write."""
        stream.send(Frame(FrameKind.PIECE, write.write_id, count).pack(), more=True)
        cursor, hasher = write.cursor, write.hasher
        end = cursor.position + count
        while cursor.position < end:
            if hasher and hasher.position <= cursor.position:
                hasher.update_to(min(cursor.total, cursor.position + HASH_STEP_BYTES))
            cursor.window((min(end, hasher.position) if hasher else end) - cursor.position)
            try:
                cursor.advance(writev(stream.channel.fd, cursor))
            except BlockingIOError:
                stream.pump(READABLE | WRITABLE)


class TcpSink:
    """Receiver: reads from the connection into granted pages, or away."""

    announces_src = False

    def __init__(self) -> None:
        self._nowhere = np.empty(_DISCARD_BYTES, np.uint8)

    def close(self) -> None:
        """Nothing to free."""

    def locate(self, src: U64, lengths: U64) -> IovCursor:
        """Never asked for: the bytes come on the connection."""
        raise TandemError(ErrorReason.INTERNAL, "tcp announces no source")

    def take_piece(self, stream: ReceiverStream, write: Incoming, count: int) -> None:
        """Thread: lands or discards the next `count` bytes of a write."""
        while count:
            stream.checkpoint()
            stream.stall_if_planned()
            try:
                count -= self._land(stream, write, count) or self._discard(stream, count)
            except BlockingIOError:
                stream.wait_readable()

    def _land(self, stream: ReceiverStream, write: Incoming, count: int) -> int:
        """Returns the bytes that landed, 0 if none may. Raises BlockingIOError if none have come."""
        grant = stream.enter(write)
        if grant is None:
            return 0
        landed = 0
        try:
            write.cursor.window(min(count, HASH_STEP_BYTES) if write.hasher else count)
            landed = readv(stream.channel.fd, write.cursor)
            if not landed:
                raise hung_up()
            stream.landed(write, landed)
        finally:
            grant.leave(landed)
        return landed

    def _discard(self, stream: ReceiverStream, count: int) -> int:
        return stream.channel.read_into(self._nowhere.data[:count])
