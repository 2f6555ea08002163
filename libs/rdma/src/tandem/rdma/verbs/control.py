"""What travels on a verbs lane's control connection, which the receiver opened with the lane's token.

    both ways            Side                 devices of this end; the receiver's with its buffers and their keys
                         QueuePairReady       a queue pair of this life of a rail is made: connect yours to it
                         RailReady            mine is connected to yours: it can receive
                         RailDown             mine is destroyed, so nothing lands or leaves by it: leave yours
    receiver -> sender   GrantOpened          these bytes may be written
                         GrantRevoked         ... not any more: answer GrantQuiet once no byte can land
                         GrantUnknown         the answer to GrantAsked, if there is no such grant
                         Credit               receive requests that were posted again on a rail
    sender -> receiver   WriteOpened          a write's chunk, tags and ranges
                         WriteEnded           it ends here: given up, or refused for a reason
                         GrantAsked           a write came before its grant
                         GrantQuiet           no write under the grant is under way any more

Pages themselves travel as RDMA writes. Each piece of a write ends with one that carries the piece's tag as immediate
data: that, and nothing said here, is the receiver's evidence.

Little endian; a frame is kind u8, three bytes of padding, bytes of the body u32, body.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol, Self

import numpy as np

from tandem.core.errors import ErrorReason, TandemError, reason_of
from tandem.core.ids import ChunkIndex, GrantId
from tandem.core.pages import U32
from tandem.rdma.api import MAX_RANGES, U64, Buffer
from tandem.rdma.memory import MAX_BUFFERS, Memory
from tandem.rdma.stream import tune
from tandem.rdma.verbs.plan import MAX_PIECE_BYTES
from tandem.rdma.wire import Welcome

WELCOME: Final = Welcome(accepted=True, streams=1, buffers=0).pack()
"""What a sender answers at the door."""
MAX_RAILS: Final = 16
"""Most devices that one lane uses."""
_MAX_BODY: Final = 64 + 16 * MAX_RANGES
_MAX_UNSENT: Final = 4 * _MAX_BODY
"""A peer that does not read its control connection loses the lane."""

_READ_LIMIT: Final = 1 << 20
"""Bytes that are read ahead."""

_HEAD = struct.Struct("<B3xI")
_RAIL_COUNT = struct.Struct("<HxxI")
_RAIL = struct.Struct("<16sHBx")
_QUEUE_PAIR = struct.Struct("<HxxIII")
_LIFE = struct.Struct("<HxxI")
_GRANT = struct.Struct("<Q")
_WRITE = struct.Struct("<QQIIQ")
_ENDED = struct.Struct("<QQIB3x32s")
_CREDIT = struct.Struct("<HxxII")


class Message(Protocol):
    """One message."""

    def pack(self) -> bytes:
        """The body."""

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises struct.error or ValueError for anything else."""


@dataclass(frozen=True, slots=True)
class RailAddress:
    """One device's port, as its peer addresses it."""

    gid: bytes
    """16 bytes."""
    lid: int
    """Local id on InfiniBand, 0 on Ethernet."""
    mtu: int
    """Code of the path MTU: 1 = 256 bytes, up to 5 = 4096."""


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One end of a lane."""

    rails: tuple[RailAddress, ...]
    buffers: U64 = field(default_factory=lambda: np.empty((0, 2), np.uint64))
    """Rows (address, bytes) [b, 2]; empty from a sender, whose memory nobody may reach."""
    keys: U32 = field(default_factory=lambda: np.empty((0, 0), np.uint32))
    """Remote key of each buffer on each rail [rails, b]."""

    def pack(self) -> bytes:
        """The body."""
        head = _RAIL_COUNT.pack(len(self.rails), self.buffers.shape[0])
        rails = b"".join(_RAIL.pack(rail.gid, rail.lid, rail.mtu) for rail in self.rails)
        return head + rails + self.buffers.tobytes() + self.keys.tobytes()

    @classmethod
    def unpack(cls, body: bytes) -> Side:
        """See `Message.unpack`."""
        rails, buffers = _RAIL_COUNT.unpack_from(body)
        if not 1 <= rails <= MAX_RAILS or buffers > MAX_BUFFERS:
            raise ValueError(f"{rails} rails, {buffers} buffers")
        at = _RAIL_COUNT.size
        addresses = tuple(RailAddress(*_RAIL.unpack_from(body, at + n * _RAIL.size)) for n in range(rails))
        at += rails * _RAIL.size
        table = np.frombuffer(body, np.uint64, 2 * buffers, at).reshape(buffers, 2)
        keys = np.frombuffer(body, np.uint32, -1, at + table.nbytes).reshape(rails if buffers else 0, buffers)
        return cls(addresses, table, keys)


@dataclass(frozen=True, slots=True)
class QueuePairReady:
    """A queue pair was made."""

    rail: int
    life: int
    """Which queue pair of this rail, from 1; both ends use the same number."""
    number: int
    psn: int
    """First packet sequence number that it sends, 24 random bits."""

    def pack(self) -> bytes:
        """The body."""
        return _QUEUE_PAIR.pack(self.rail, self.life, self.number, self.psn)

    @classmethod
    def unpack(cls, body: bytes) -> QueuePairReady:
        """See `Message.unpack`."""
        return cls(*_QUEUE_PAIR.unpack(body))


@dataclass(frozen=True, slots=True)
class _AboutLife:
    rail: int
    life: int

    def pack(self) -> bytes:
        """The body."""
        return _LIFE.pack(self.rail, self.life)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """See `Message.unpack`."""
        return cls(*_LIFE.unpack(body))


@dataclass(frozen=True, slots=True)
class RailReady(_AboutLife):
    """A queue pair was connected to the peer's."""


@dataclass(frozen=True, slots=True)
class RailDown(_AboutLife):
    """A queue pair is out of use, and the next one may take time."""


@dataclass(frozen=True, slots=True, eq=False)
class GrantOpened:
    """Bytes [starts, ends) of the receiver's memory may be written."""

    grant_id: GrantId
    starts: U64
    ends: U64

    def pack(self) -> bytes:
        """The body."""
        return _GRANT.pack(self.grant_id) + self.starts.tobytes() + self.ends.tobytes()

    @classmethod
    def unpack(cls, body: bytes) -> GrantOpened:
        """See `Message.unpack`."""
        both = np.frombuffer(body, np.uint64, -1, _GRANT.size).reshape(2, -1)
        return cls(GrantId(_GRANT.unpack_from(body)[0]), both[0], both[1])


@dataclass(frozen=True, slots=True)
class _AboutGrant:
    grant_id: GrantId

    def pack(self) -> bytes:
        """The body."""
        return _GRANT.pack(self.grant_id)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """See `Message.unpack`."""
        return cls(GrantId(_GRANT.unpack(body)[0]))


@dataclass(frozen=True, slots=True)
class GrantRevoked(_AboutGrant):
    """A grant is closed."""


@dataclass(frozen=True, slots=True)
class GrantUnknown(_AboutGrant):
    """There is no such grant."""


@dataclass(frozen=True, slots=True)
class GrantAsked(_AboutGrant):
    """Is there such a grant?"""


@dataclass(frozen=True, slots=True)
class GrantQuiet(_AboutGrant):
    """No write under a revoked grant is under way any more."""


@dataclass(frozen=True, slots=True, eq=False)
class WriteOpened:
    """A write of the ranges (dst, lengths)."""

    grant_id: GrantId
    chunk: ChunkIndex
    first_tag: int
    """Tag of its first piece; those of the others follow, modulo 2^32."""
    piece_bytes: int
    total: int
    """Bytes in all."""
    dst: U64
    lengths: U64

    def pack(self) -> bytes:
        """The body."""
        head = _WRITE.pack(self.grant_id, self.chunk, self.first_tag, self.piece_bytes, self.total)
        return head + self.dst.tobytes() + self.lengths.tobytes()

    @classmethod
    def unpack(cls, body: bytes) -> WriteOpened:
        """See `Message.unpack`."""
        grant_id, chunk, first_tag, piece_bytes, total = _WRITE.unpack_from(body)
        both = np.frombuffer(body, np.uint64, -1, _WRITE.size).reshape(2, -1)
        if not 1 <= piece_bytes <= MAX_PIECE_BYTES or int(both[1].sum(dtype=np.uint64)) != total:
            raise ValueError(f"pieces of {piece_bytes} bytes, {total} bytes in all")
        return cls(GrantId(grant_id), ChunkIndex(chunk), first_tag, piece_bytes, total, both[0], both[1])


@dataclass(frozen=True, slots=True)
class WriteEnded:
    """A write that does not go on."""

    grant_id: GrantId
    chunk: ChunkIndex
    first_tag: int
    opened: bool
    """Whether it was announced."""
    reason: ErrorReason | None
    """Why the sender's end refused it; None if it was given up."""

    def pack(self) -> bytes:
        """The body."""
        name = self.reason.value.encode() if self.reason else b""
        return _ENDED.pack(self.grant_id, self.chunk, self.first_tag, self.opened, name)

    @classmethod
    def unpack(cls, body: bytes) -> WriteEnded:
        """See `Message.unpack`."""
        grant_id, chunk, first_tag, opened, name = _ENDED.unpack(body)
        text = name.rstrip(b"\0").decode("ascii")
        return cls(GrantId(grant_id), ChunkIndex(chunk), first_tag, bool(opened), reason_of(text) if text else None)


@dataclass(frozen=True, slots=True)
class Credit:
    """Receive requests that were posted again."""

    rail: int
    life: int
    count: int

    def pack(self) -> bytes:
        """The body."""
        return _CREDIT.pack(self.rail, self.life, self.count)

    @classmethod
    def unpack(cls, body: bytes) -> Credit:
        """See `Message.unpack`."""
        return cls(*_CREDIT.unpack(body))


_KINDS: Final[tuple[type[Message], ...]] = (
    Side,
    QueuePairReady,
    RailReady,
    GrantOpened,
    GrantRevoked,
    GrantUnknown,
    GrantAsked,
    GrantQuiet,
    WriteOpened,
    WriteEnded,
    Credit,
    RailDown,
)
_NUMBERS: Final[dict[type, int]] = {kind: number for number, kind in enumerate(_KINDS)}


def memory_of(side: Side) -> Memory:
    """The receiver's memory, by its table. Raises TandemError(PROTOCOL_VIOLATION)."""
    try:
        return Memory([Buffer(int(base), int(size)) for base, size in side.buffers])
    except TandemError as error:
        raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"the receiver shows no memory: {error.message}") from error


class ControlConnection:
    """The connection of one lane, on the loop: messages in order, each way."""

    def __init__(
        self, sock: socket.socket, on_message: Callable[[Message], None], on_end: Callable[[TandemError], None]
    ) -> None:
        """Takes over a connected socket and reads from now on. on_end is called once, unless `close` came first.

        on_message may raise TandemError: the connection ends with it.
        """
        self._on_message = on_message
        self._on_end = on_end
        self._unsent: deque[bytes] = deque()
        self._writer: asyncio.StreamWriter | None = None
        self._sock = sock
        tune(sock)  # asyncio does so only for sockets that were made with the number of TCP
        self._ended = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    def send(self, message: Message) -> None:
        """Sends soon, in order. On a connection that is gone it does nothing: its end is told by on_end."""
        if self._ended:
            return
        body = message.pack()
        frame = _HEAD.pack(_NUMBERS[type(message)], len(body)) + body
        if self._writer is None:
            self._unsent.append(frame)
            return
        self._writer.write(frame)
        if self._writer.transport.get_write_buffer_size() > _MAX_UNSENT:
            self._writer.transport.abort()

    async def close(self) -> None:
        """Hangs up. Idempotent."""
        self._ended = True
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._writer is None:
            self._sock.close()
        else:
            self._writer.close()

    async def _run(self) -> None:
        try:
            reader, self._writer = await asyncio.open_connection(sock=self._sock, limit=_READ_LIMIT)
            while self._unsent:
                self._writer.write(self._unsent.popleft())
            await self._read(reader)
        except TandemError as error:
            end = error
        except (struct.error, ValueError) as error:
            end = TandemError(ErrorReason.PROTOCOL_VIOLATION, f"a control message can't be read: {error}")
        except (asyncio.IncompleteReadError, OSError):
            end = TandemError(ErrorReason.LINK_LOST, "the peer hung up")
        self._ended = True
        self._on_end(end)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            number, count = _HEAD.unpack(await reader.readexactly(_HEAD.size))
            if number >= len(_KINDS) or count > _MAX_BODY:
                raise ValueError(f"kind {number}, {count} bytes")
            self._on_message(_KINDS[number].unpack(await reader.readexactly(count)))
