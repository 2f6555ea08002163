"""What travels on a lane's connection. Little endian, fixed sizes; both ends are ours and of the same protocol major.

    receiver -> sender   Knock                     opens one connection of a lane with the lane's token
    sender -> receiver   Welcome, buffer table     or a refusal
    sender -> receiver   Frame(OPEN), dst[n], lengths[n], and for cma src[n]
                         Frame(PIECE), payload     the next bytes of the write; no payload for cma
                         Frame(ABANDON)            the write ends here
    receiver -> sender   Reply                     LANDED or REFUSED once per write; PULLED per piece, for cma

A write's ranges all come first, so that the receiver checks the whole write before it takes a byte of it. Pieces are
small, so that a cancelled write ends soon. Writes on one connection follow each other; they never interleave.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from tandem.core.errors import ErrorReason, TandemError, reason_of

MAX_PIECE_BYTES: Final = 16 << 20
"""Most bytes in one piece."""
TOKEN_BYTES: Final = 16
MAX_STREAMS: Final = 16

_MAGIC: Final = b"TNDM"
_VERSION: Final = 1
_KNOCK = struct.Struct("<4sHH16s")
_WELCOME = struct.Struct("<4sBBHI")
_FRAME = struct.Struct("<B3xIQQQQ")
_REPLY = struct.Struct("<B7xQQ32s")

KNOCK_BYTES: Final = _KNOCK.size
WELCOME_BYTES: Final = _WELCOME.size
FRAME_BYTES: Final = _FRAME.size
REPLY_BYTES: Final = _REPLY.size


class FrameKind(IntEnum):
    """What a sender says."""

    OPEN = 1
    PIECE = 2
    ABANDON = 3


class ReplyKind(IntEnum):
    """What a receiver says."""

    LANDED = 1
    REFUSED = 2
    PULLED = 3


@dataclass(frozen=True, slots=True)
class Knock:
    """A receiver at the door."""

    token: bytes
    stream: int
    """Number of the connection in its lane, from 0."""

    def pack(self) -> bytes:
        """The wire form."""
        return _KNOCK.pack(_MAGIC, _VERSION, self.stream, self.token)

    @classmethod
    def unpack(cls, data: bytes) -> Knock:
        """Raises TandemError(PROTOCOL_VIOLATION) for anything else."""
        magic, version, stream, token = _KNOCK.unpack(data)
        if magic != _MAGIC or version != _VERSION or stream >= MAX_STREAMS:
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "this is no lane of this protocol")
        return cls(token, stream)


@dataclass(frozen=True, slots=True)
class Welcome:
    """The sender's answer to a knock."""

    accepted: bool
    streams: int
    """Connections that the lane has. Range 1..16."""
    buffers: int
    """Rows (address, bytes) of the sender's memory that follow; 0 but for the first connection of cma."""

    def pack(self) -> bytes:
        """The wire form."""
        return _WELCOME.pack(_MAGIC, _VERSION, self.accepted, self.streams, self.buffers)

    @classmethod
    def unpack(cls, data: bytes) -> Welcome:
        """Raises TandemError(PROTOCOL_VIOLATION) for anything else."""
        magic, version, accepted, streams, buffers = _WELCOME.unpack(data)
        if magic != _MAGIC or version != _VERSION or not 1 <= streams <= MAX_STREAMS:
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "this is no lane of this protocol")
        return cls(bool(accepted), streams, buffers)


@dataclass(frozen=True, slots=True)
class Frame:
    """One announcement of a sender; only `kind`, `write_id` and `size` count outside OPEN."""

    kind: FrameKind
    write_id: int
    size: int = 0
    """Bytes. OPEN: of the whole write. PIECE: of this piece."""
    ranges: int = 0
    grant_id: int = 0
    chunk: int = 0

    def pack(self) -> bytes:
        """The wire form."""
        return _FRAME.pack(self.kind, self.ranges, self.write_id, self.size, self.grant_id, self.chunk)

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> Frame:
        """Raises TandemError(PROTOCOL_VIOLATION) for anything else."""
        kind, ranges, write_id, count, grant_id, chunk = _FRAME.unpack(data)
        try:
            return cls(FrameKind(kind), write_id, count, ranges, grant_id, chunk)
        except ValueError:
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"a frame has the unknown kind {kind}") from None


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a receiver."""

    kind: ReplyKind
    write_id: int
    size: int = 0
    reason: ErrorReason | None = None

    def pack(self) -> bytes:
        """The wire form."""
        name = self.reason.value.encode() if self.reason else b""
        return _REPLY.pack(self.kind, self.write_id, self.size, name)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> Reply:
        """Raises TandemError(PROTOCOL_VIOLATION) for anything else."""
        kind, write_id, count, name = _REPLY.unpack(data)
        text = name.rstrip(b"\0").decode("ascii", "replace")
        try:
            return cls(ReplyKind(kind), write_id, count, reason_of(text) if text else None)
        except ValueError:
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"a reply has the unknown kind {kind}") from None
