"""Sender's end of a verbs lane: cuts writes into pieces, posts them on its rails, and takes them back.

A write waits for its grant, then its pieces wait for a rail. Each piece stays on one rail and ends with its tag. What a
rail had under way when it broke is posted again, here or on another rail: writing the same bytes twice does no harm, as
the receiver lets go of a page only when this end has said that it is quiet.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma.api import U64, LaneLost, OnEvent, Transfer, TransferStatus
from tandem.rdma.grants import MAX_OPEN_GRANTS, Extent
from tandem.rdma.memory import Memory
from tandem.rdma.transfer import MAX_WRITES, WriteTransfer, checked_ranges
from tandem.rdma.verbs import control
from tandem.rdma.verbs.completions import Completion
from tandem.rdma.verbs.control import ControlConnection, Message, Side
from tandem.rdma.verbs.hashing import ChunkHash
from tandem.rdma.verbs.parts import LaneParts
from tandem.rdma.verbs.plan import bytes_of_piece, cut, piece_count
from tandem.rdma.verbs.queue_pair import QueueShape, index_of
from tandem.rdma.verbs.rail import Rail, RailParts
from tandem.rdma.verbs.sender_rail import Piece, RailKeys, SenderRail, Write

_TAGS: Final = 1 << 32
_MOST_TRIES: Final = 3
"""Rails that may break under a piece before its write fails."""
_FIRST_DELAY_S: Final = 0.02
_LAST_DELAY_S: Final = 1.0
"""A rail that broke is made anew after a delay that doubles with each failure."""
_AVOID_DELAYS: Final = 10
"""... and left out while another is up, for so many times that delay."""

_log = logging.getLogger(__name__)


class VerbsSenderLane:
    """The `SenderLane`: usable at once; its writes wait until the receiver has connected."""

    provider = "verbs"

    def __init__(self, parts: LaneParts, on_event: OnEvent, on_gone: Callable[[VerbsSenderLane], None]) -> None:
        self._parts = parts
        self._settings = parts.settings.verbs
        self._on_event = on_event
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._control: ControlConnection | None = None
        self._remote: Memory | None = None
        self._rails: list[SenderRail] = []
        self._unconnected: set[int] = set()
        """Rails that could not be connected when that was tried last."""
        self._grants: dict[GrantId, Extent] = {}
        self._revoked: set[GrantId] = set()
        self._writes: dict[int, WriteTransfer] = {}
        self._early: dict[int, WriteTransfer] = {}
        """Writes without a grant yet, or without a peer."""
        self._under_way: dict[int, Write] = {}
        self._pending: deque[Piece] = deque()
        self._next_write = 0
        self._next_tag = secrets.randbelow(_TAGS)
        self._claimed = False
        self._lost: TandemError | None = None
        self._closing = False
        self._gone = asyncio.Event()
        patience_s = 2 * parts.settings.connect_timeout_ms / 1000
        self._patience = self._loop.call_later(patience_s, self._nobody_came)

    # ------------------------------------------------------------ opening

    def claim(self, stream: int) -> bool:
        """Takes the place of the control connection; False if it is taken."""
        free = stream == 0 and not self._claimed and not self._ending
        self._claimed |= free
        return free

    @property
    def fully_claimed(self) -> bool:
        """Whether the connection has come."""
        return self._claimed

    def welcome(self, stream: int) -> bytes:
        """The answer at the door."""
        return control.WELCOME

    def attach(self, stream: int, sock: socket.socket) -> None:
        """The receiver has come."""
        if self._ending:
            sock.close()
            return
        self._control = ControlConnection(sock, self._on_message, self._lose)
        self._patience.cancel()
        self._expect_rail()

    def _nobody_came(self) -> None:
        self._lose(TandemError(ErrorReason.LINK_LOST, "the receiver did not connect in time"))

    def _expect_rail(self) -> None:
        """No rail is up: one has to come in time, or the lane is given up."""
        self._patience.cancel()
        timeout_ms = self._parts.settings.connect_timeout_ms
        error = TandemError(ErrorReason.LINK_LOST, f"no queue pair could be connected for {timeout_ms} ms")
        self._patience = self._loop.call_later(timeout_ms / 1000, self._lose, error)

    def _meet(self, side: Side) -> None:
        if self._rails or not side.buffers.size:
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "the receiver shows itself twice, or without memory")
        self._remote = control.memory_of(side)
        devices = self._parts.devices[: len(side.rails)]
        self.send(Side(tuple(device.address for device in devices)))
        shape = QueueShape(self._settings.send_depth, 1, remote_write=False)
        for index, device in enumerate(devices):
            rail = Rail(RailParts(index, device, side.rails[index], shape), self)
            keys = RailKeys(self._parts.keys[index], side.keys[index])
            self._rails.append(SenderRail(rail, keys, self._settings.receive_depth))
            rail.open()
        for grant_id in {early.grant_id for early in self._early.values()}:
            self.send(control.GrantAsked(grant_id))

    # ------------------------------------------------------------ messages

    def send(self, message: Message) -> None:
        """Tells the receiver."""
        if self._control is not None:
            self._control.send(message)

    def _on_message(self, message: Message) -> None:
        match message:
            case Side():
                self._meet(message)
            case control.QueuePairReady(rail):
                self._rail(rail).rail.on_queue_pair(message)
            case control.RailReady(rail):
                self._rail(rail).rail.on_ready(message)
            case control.RailDown(rail):
                self._rail(rail).rail.on_down(message)
                self._prove(rail, message.life)
            case control.Credit(rail, life, count):
                if life == self._rail(rail).rail.life:
                    self._rail(rail).give_credit(count)
                    self._pump()
            case control.GrantOpened(grant_id, starts, ends):
                if len(self._grants) >= MAX_OPEN_GRANTS:
                    raise TandemError(ErrorReason.PROTOCOL_VIOLATION, "the receiver opens too many grants")
                self._grants[grant_id] = Extent(starts, ends, int((ends - starts).sum(dtype=np.uint64)))
                self._try_early(grant_id)
            case control.GrantRevoked(grant_id):
                self._revoke(grant_id)
            case control.GrantUnknown(grant_id):
                self._refuse_early(grant_id)
            case _:
                raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"a receiver does not say {type(message).__name__}")

    def _rail(self, index: int) -> SenderRail:
        if index >= len(self._rails):
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"rail {index} of {len(self._rails)}")
        return self._rails[index]

    # ------------------------------------------------------------ writing

    def write(self, src: U64, dst: U64, lengths: U64, grant_id: GrantId, chunk: ChunkIndex) -> Transfer:
        """See `SenderLane.write`; raises TandemError(OVERLOADED) too, if MAX_WRITES are under way."""
        if self._ending:
            raise self._lost or TandemError(ErrorReason.LINK_LOST, "the lane is closed")
        if len(self._writes) >= MAX_WRITES:
            raise TandemError(ErrorReason.OVERLOADED, f"{MAX_WRITES} writes are under way on this lane")
        ranges = checked_ranges(self._parts.memory, src, dst, lengths, grant_id, chunk)
        self._next_write += 1
        transfer = WriteTransfer(self._next_write, ranges, grant_id, chunk, self._parts.settings.fence_ms)
        transfer.withdraw = self._withdraw
        transfer.on_settled = self._forget
        self._writes[transfer.write_id] = transfer
        if self._remote is not None and grant_id in self._grants:
            self._launch(transfer)
        else:
            self._early[transfer.write_id] = transfer
            self.send(control.GrantAsked(grant_id))
        return transfer

    def _try_early(self, grant_id: GrantId) -> None:
        if self._remote is None:
            return
        for transfer in [early for early in self._early.values() if early.grant_id == grant_id]:
            del self._early[transfer.write_id]
            self._launch(transfer)

    def _refuse_early(self, grant_id: GrantId) -> None:
        for transfer in [early for early in self._early.values() if early.grant_id == grant_id]:
            self._refuse(transfer, ErrorReason.GRANT_CLOSED, f"grant {grant_id} is not open on this lane")

    def _refuse(self, transfer: WriteTransfer, reason: ErrorReason, message: str) -> None:
        """A write that never began."""
        self._early.pop(transfer.write_id, None)
        self.send(control.WriteEnded(transfer.grant_id, transfer.chunk, 0, False, reason))
        transfer.settle(TransferStatus.REFUSED, TandemError(reason, message))

    def _launch(self, transfer: WriteTransfer) -> None:
        extent, ranges = self._grants[transfer.grant_id], transfer.ranges
        if not extent.contains(ranges.dst, ranges.lengths) or transfer.total > extent.bytes:
            text = f"the write leaves the ranges of grant {transfer.grant_id}"
            self._refuse(transfer, ErrorReason.OUT_OF_GRANT, text)
            return
        write = self._cut(transfer)
        self._under_way[transfer.write_id] = write
        self._pump()  # before it is announced: the device works while the announcement is written
        self.send(
            control.WriteOpened(
                transfer.grant_id,
                transfer.chunk,
                write.first_tag,
                self._settings.piece_bytes,
                transfer.total,
                ranges.dst,
                ranges.lengths,
            )
        )
        if write.checksum is not None:
            write.checksum.advance(transfer.total)
        self._see_end(write)

    def _cut(self, transfer: WriteTransfer) -> Write:
        """The write's pieces, which wait for a rail from now on."""
        assert self._remote is not None
        piece_bytes, ranges, memory = self._settings.piece_bytes, transfer.ranges, self._parts.memory
        segments = cut(ranges, memory, self._remote, piece_bytes)
        pieces = piece_count(transfer.total, piece_bytes)
        first_tag, self._next_tag = self._next_tag, (self._next_tag + pieces) % _TAGS
        write = Write(transfer, segments, first_tag, None, pieces)
        if self._parts.settings.checksum:
            write.checksum = ChunkHash(
                self._parts.threads, memory, ranges.src, ranges.lengths, lambda: self._see_end(write)
            )
        firsts = segments.piece_first.tolist()
        nodes = self._parts.nodes[segments.local_buffer[segments.piece_first[:-1]]].tolist()
        for number in range(pieces):
            size = bytes_of_piece(transfer.total, piece_bytes, number)
            self._pending.append(Piece(write, firsts[number], firsts[number + 1], size, nodes[number]))
        return write

    def _pump(self) -> None:
        """Gives pieces to rails, and has the rails post."""
        while self._pending and (rail := self._choose(self._pending[0])):
            rail.assign(self._pending.popleft())
        for rail in self._rails:
            try:
                rail.post()
            except TandemError as error:
                self._break(rail, error)

    def _choose(self, piece: Piece) -> SenderRail | None:
        """A rail on the NUMA node of the piece's memory if one is up, else any; the one with the least to do."""
        up = [rail for rail in self._rails if rail.rail.up]
        now = self._loop.time()
        steady = [rail for rail in up if rail.avoid_until <= now] or up
        near = [rail for rail in steady if rail.rail.device.node == piece.node] or steady
        window = self._settings.window_bytes
        free = [rail for rail in near if not rail.queued_bytes or rail.queued_bytes + piece.bytes <= window]
        return min(free, key=lambda rail: (rail.queued_bytes, rail.total_bytes), default=None)

    # ------------------------------------------------------------ rails

    def completed(self, rail: Rail, completion: Completion) -> None:
        """A chain ended, or the rail broke."""
        index, sender_rail = index_of(completion.wr_id), self._rails[rail.index]
        library = rail.device.library
        if completion.status == library.IBV_WC_SUCCESS:
            for piece in sender_rail.complete(index):
                sender_rail.failures, sender_rail.avoid_until = 0, 0.0
                piece.write.pieces_left -= 1
                piece.write.transfer.sent += piece.bytes
                self._see_end(piece.write)
            for write in [write for write in self._under_way.values() if write.stop]:
                self._see_end(write)
            self._pump()
            return
        if completion.status == library.IBV_WC_WR_FLUSH_ERR:
            if rail.up:
                rail.renew()
            return
        text = f"{rail.device.name}: {library.status_text(completion.status)}"
        error = TandemError(ErrorReason.TRANSFER_FAILED, text)
        culprit = sender_rail.piece_at(index)
        if culprit is not None and completion.status not in library.LINK_STATUSES:
            self._stop(culprit.write, TransferStatus.FAILED, error)
        self._break(sender_rail, error)

    def _break(self, rail: SenderRail, error: TandemError) -> None:
        if rail.broke is not None:
            return
        rail.broke = error
        rail.failures += 1
        delay_s = min(_LAST_DELAY_S, _FIRST_DELAY_S * 2 ** (rail.failures - 1))
        rail.avoid_until = self._loop.time() + _AVOID_DELAYS * delay_s
        _log.warning("rail %d broke: %s", rail.rail.index, error.message)
        rail.rail.renew(delay_s)

    def rail_up(self, rail: Rail) -> None:
        """See `RailUser`."""
        self._patience.cancel()
        self._unconnected.discard(rail.index)
        self._rails[rail.index].rise()
        self._pump()

    def rail_down(self, rail: Rail) -> None:
        """See `RailUser`: what was under way there is posted anew, or ends here."""
        sender_rail = self._rails[rail.index]
        pieces = sender_rail.take_back()
        if self._ending:
            self._leave_unproven()
        self._pending.extendleft(piece for piece in reversed(pieces) if not piece.write.stop)
        for piece in pieces:
            if piece.tries >= _MOST_TRIES:
                self._stop(piece.write, TransferStatus.FAILED, sender_rail.broke)
            self._see_end(piece.write)
        if not self._ending and not any(other.rail.up for other in self._rails):
            self._expect_rail()
        self._pump()

    def _prove(self, index: int, life: int) -> None:
        """Nothing lands any more of what was posted on a rail up to a life."""
        for write in list(self._under_way.values()):
            write.unproven = {(rail, lived) for rail, lived in write.unproven if rail != index or lived > life}
            self._see_end(write)

    def _leave_unproven(self) -> None:
        """The lane ends, and with it the peer's queue pairs: the peer does not ask this end whether it is quiet."""
        for write in list(self._under_way.values()):
            write.unproven.clear()
            self._see_end(write)

    def rail_lost(self, rail: Rail, error: TandemError) -> None:
        """See `RailUser`: it is tried again as long as there is another, or one that has not failed."""
        self._unconnected.add(rail.index)
        if len(self._unconnected) == len(self._rails):
            self._lose(error)
        else:
            self._rails[rail.index].broke = None  # that was an earlier life
            self._break(self._rails[rail.index], error)

    # ------------------------------------------------------------ endings of writes

    def _withdraw(self, transfer: WriteTransfer) -> None:
        if self._early.pop(transfer.write_id, None):
            transfer.settle(TransferStatus.CANCELLED)
        elif write := self._under_way.get(transfer.write_id):
            self._stop(write, TransferStatus.CANCELLED, None)

    def _revoke(self, grant_id: GrantId) -> None:
        self._grants.pop(grant_id, None)
        self._revoked.add(grant_id)
        self._refuse_early(grant_id)
        error = TandemError(ErrorReason.GRANT_CLOSED, f"grant {grant_id} was closed")
        for write in [write for write in self._under_way.values() if write.transfer.grant_id == grant_id]:
            self._stop(write, TransferStatus.REFUSED, error)
        self._see_quiet(grant_id)

    def _stop(self, write: Write, status: TransferStatus, error: TandemError | None) -> None:
        """Ends a write as soon as nothing of it is under way; if that takes too long its rails are fenced."""
        if write.stop is not None:
            return
        write.stop = (status, error)
        self._pending = deque(piece for piece in self._pending if piece.write is not write)
        for rail in self._rails:
            rail.withdraw(write)
        if write.checksum is not None:
            write.checksum.stop()
        if write.chains:
            self._loop.call_later(self._parts.settings.fence_ms / 1000, self._fence, write)
        self._see_end(write)

    def _fence(self, write: Write) -> None:
        for rail in self._rails:
            if write.transfer.write_id in self._under_way and rail.has(write):
                _log.warning("rail %d is fenced: a stopped write did not end in time", rail.rail.index)
                rail.rail.renew()

    def _see_end(self, write: Write) -> None:
        transfer = write.transfer
        if transfer.write_id not in self._under_way or not write.still:
            return
        if write.pieces_left and not write.stop:
            return
        if not write.stop and write.checksum is not None and write.checksum.position < transfer.total:
            return
        del self._under_way[transfer.write_id]
        transfer.hasher = write.checksum.hasher if write.checksum else None
        status, error = write.stop or (TransferStatus.DONE, None)
        if status is not TransferStatus.DONE:
            reason = error.reason if error is not None and status is TransferStatus.REFUSED else None
            self.send(control.WriteEnded(transfer.grant_id, transfer.chunk, write.first_tag, True, reason))
        transfer.settle(status, error)
        self._see_quiet(transfer.grant_id)

    def _see_quiet(self, grant_id: GrantId) -> None:
        if self._ending:
            return
        if grant_id in self._revoked and all(write.transfer.grant_id != grant_id for write in self._under_way.values()):
            self._revoked.discard(grant_id)
            self.send(control.GrantQuiet(grant_id))

    def _forget(self, transfer: WriteTransfer) -> None:
        self._writes.pop(transfer.write_id, None)

    # ------------------------------------------------------------ ending

    @property
    def _ending(self) -> bool:
        return self._closing or self._lost is not None

    async def close(self) -> None:
        """Cancels what is under way and closes. Idempotent."""
        if not self._ending:
            self._closing = True
            self._leave_unproven()
            for transfer in list(self._writes.values()):
                transfer.ask_to_stop()
            for transfer in list(self._writes.values()):
                await transfer.wait()
            await self._end()
        await self._gone.wait()

    def _lose(self, error: TandemError) -> None:
        if self._lost is None and not self._closing:
            self._lost = error
            self._parts.spawn(self._end())

    async def _end(self) -> None:
        """Nothing of the lane's sources is read once this is over."""
        self._patience.cancel()
        self._leave_unproven()
        for write in list(self._under_way.values()):
            self._stop(write, TransferStatus.FAILED, self._lost)
        for rail in self._rails:
            await rail.rail.close()
        for write in list(self._under_way.values()):
            await write.transfer.wait()  # until its checksum has stopped
        if self._control is not None:
            await self._control.close()
        error = self._lost or TandemError(ErrorReason.LINK_LOST, "the lane is closed")
        for transfer in list(self._writes.values()):
            transfer.settle(TransferStatus.CANCELLED if transfer.cancelled else TransferStatus.FAILED, error)
        self._gone.set()
        self._on_gone(self)
        if not self._closing:
            _log.warning("verbs lane lost: %s", error.message)
            self._on_event(LaneLost(error))
