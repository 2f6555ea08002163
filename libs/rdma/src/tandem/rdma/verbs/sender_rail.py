"""What a sender has under way on one rail."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tandem.core.errors import TandemError
from tandem.core.pages import U32
from tandem.rdma.api import TransferStatus
from tandem.rdma.transfer import WriteTransfer
from tandem.rdma.verbs.chain import WriteBatch, encode
from tandem.rdma.verbs.hashing import ChunkHash
from tandem.rdma.verbs.plan import Segments
from tandem.rdma.verbs.rail import Rail

SIGNAL_EVERY: Final = 64
"""One of so many writes asks for a completion, and the last of each chain."""


@dataclass(slots=True, eq=False)
class Write:
    """A write whose grant is known."""

    transfer: WriteTransfer
    segments: Segments
    first_tag: int
    """Of its first piece; those of the others follow, modulo 2^32."""
    checksum: ChunkHash | None
    pieces_left: int
    chains: int = 0
    """Chains of work requests that are posted and have not ended."""
    batches: dict[int, WriteBatch] = field(default_factory=dict)
    """The write as each rail posts it: keys differ by device."""
    unproven: set[tuple[int, int]] = field(default_factory=set)
    """Rails and lives that ended with chains of it posted: those may land until the peer's end is destroyed."""
    stop: tuple[TransferStatus, TandemError | None] | None = None
    """How it is going to end, if not well."""

    @property
    def still(self) -> bool:
        """Whether nothing reads its source, and nothing that was read can land, any more."""
        return not self.chains and not self.unproven and not (self.checksum and self.checksum.busy)


@dataclass(slots=True, eq=False)
class Piece:
    """The segments first..end of a write: they go over one rail, and the last of them carries the tag."""

    write: Write
    first: int
    end: int
    bytes: int
    node: int
    """NUMA node of its source."""
    posted: int = 0
    """Next segment to post."""
    tries: int = 0
    """Rails that broke under it."""

    def __post_init__(self) -> None:
        self.posted = self.first


@dataclass(frozen=True, slots=True)
class RailKeys:
    """Keys of the buffers on one rail."""

    local: U32
    remote: U32


class SenderRail:
    """A rail and its queue: assigned pieces, and chains of them that are posted."""

    def __init__(self, rail: Rail, keys: RailKeys, credits: int) -> None:
        self.rail = rail
        self.queued_bytes = 0
        """Bytes of pieces that were assigned and have not ended."""
        self.total_bytes = 0
        """Bytes of pieces that were ever assigned."""
        self.broke: TandemError | None = None
        """What the device said when this life broke; None if it was only fenced."""
        self.failures = 0
        """Lives that broke one after another."""
        self.avoid_until = 0.0
        """Loop time until which other rails are taken, if there are any."""
        self._keys = keys
        self._most_credits = credits
        self._credits = 0
        self._assigned: deque[Piece] = deque()
        self._chains: deque[tuple[int, Piece, bool]] = deque()

    def rise(self) -> None:
        """A new life: the peer has posted all its receive requests."""
        self._credits = self._most_credits
        self.broke = None

    def give_credit(self, count: int) -> None:
        """The peer posted receive requests again."""
        self._credits = min(self._most_credits, self._credits + count)

    # ------------------------------------------------------------ posting

    def assign(self, piece: Piece) -> None:
        """Takes a piece on; `post` posts it."""
        self._assigned.append(piece)
        self.queued_bytes += piece.bytes
        self.total_bytes += piece.bytes

    def post(self) -> None:
        """Posts what has room and credit. Raises TandemError(TRANSFER_FAILED)."""
        pair = self.rail.queue_pair
        while self.rail.up and pair is not None and self._assigned and pair.room:
            piece = self._assigned[0]
            count = min(pair.room, piece.end - piece.posted)
            if piece.posted + count == piece.end and not self._credits:
                count -= 1  # the last one uses a receive request of the peer
            if not count:
                return
            self._post_chain(piece, count)

    def _post_chain(self, piece: Piece, count: int) -> None:
        pair, write = self.rail.queue_pair, piece.write
        assert pair is not None
        first, end = piece.posted, piece.posted + count
        batch, codes = self._batch(write), self.rail.device.library.codes
        for index in (*range(first + SIGNAL_EVERY - 1, end, SIGNAL_EVERY), end - 1):
            batch.signal(index, codes)
        pair.post(batch, first, count)
        last = end == piece.end
        piece.posted = end
        write.chains += 1
        self._chains.append((pair.posted, piece, last))
        if last:
            self._assigned.popleft()
            self._credits -= 1

    def _batch(self, write: Write) -> WriteBatch:
        batch = write.batches.get(self.rail.index)
        if batch is None:
            segments, codes = write.segments, self.rail.device.library.codes
            batch = write.batches[self.rail.index] = encode(
                codes,
                segments.local,
                segments.lengths,
                self._keys.local[segments.local_buffer],
                segments.remote,
                self._keys.remote[segments.remote_buffer],
            )
            last = segments.piece_first[1:] - 1
            batch.tag(last, np.uint32(write.first_tag) + np.arange(last.size, dtype=np.uint32), codes)
        return batch

    # ------------------------------------------------------------ endings

    def complete(self, index: int) -> list[Piece]:
        """Writes up to an index have ended well; gives the pieces that are whole."""
        whole = []
        while self._chains and self._chains[0][0] <= index + 1:
            _, piece, last = self._chains.popleft()
            piece.write.chains -= 1
            if last:
                self.queued_bytes -= piece.bytes
                whole.append(piece)
        return whole

    def piece_at(self, index: int) -> Piece | None:
        """The piece that a posted write belongs to."""
        return next((piece for end, piece, _ in self._chains if index < end), None)

    def has(self, write: Write) -> bool:
        """Whether something of a write is posted here."""
        return any(piece.write is write for _, piece, _ in self._chains)

    def withdraw(self, write: Write) -> None:
        """Posts no more of a write. What is posted ends by itself."""
        for piece in [piece for piece in self._assigned if piece.write is write]:
            self._assigned.remove(piece)
            self.queued_bytes -= piece.bytes

    def take_back(self) -> list[Piece]:
        """The queue pair is destroyed: gives every piece that has not ended, in order, to be posted anew."""
        posted = [piece for _, piece, _ in self._chains]
        for piece in posted:
            piece.write.chains -= 1
            if self.rail.peer_ended < self.rail.life:
                piece.write.unproven.add((self.rail.index, self.rail.life))
        pieces = list(dict.fromkeys([*posted, *self._assigned]))
        for piece in pieces:
            piece.tries += bool(self.broke) and piece.posted > piece.first
            piece.posted = piece.first
        self._chains.clear()
        self._assigned.clear()
        self.queued_bytes = 0
        return pieces
