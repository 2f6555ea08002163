"""Provider `fake`: an in-process double of a lane, for tests and simulators. No thread, no socket, no clock.

Everything happens in steps on the event loop. A seed decides which write moves next, when a step brings nothing and
when a lane is lost, so that one seed gives one order of events.
"""

from __future__ import annotations

import asyncio
import ctypes
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import ChunkIndex, GrantId
from tandem.rdma.api import (
    U64,
    Accepted,
    Buffer,
    ChunkLanded,
    ChunkRefused,
    EndpointSettings,
    Grant,
    LaneLost,
    OnEvent,
    ProviderOffer,
    ReceiverLane,
    Transfer,
    TransferStatus,
)
from tandem.rdma.checksum import ChunkHasher
from tandem.rdma.faults import Faults
from tandem.rdma.grants import GrantTable, OpenGrant
from tandem.rdma.iov import IovCursor
from tandem.rdma.memory import Memory
from tandem.rdma.transfer import MAX_WRITES, WriteTransfer, checked_ranges


@dataclass(frozen=True, slots=True)
class FakePlan:
    """What goes wrong on a fake network, by seed."""

    seed: int = 0
    idle_step: float = 0.0
    """Probability that a step moves nothing."""
    lose_lane: float = 0.0
    """Probability that a step loses its lane, perhaps in the middle of a write."""
    piece_bytes: int = 4 << 20
    """Most bytes that one step moves."""


class FakeNetwork:
    """Fake endpoints that reach each other."""

    def __init__(self, plan: FakePlan | None = None) -> None:
        self.plan = plan or FakePlan()
        self.random = random.Random(self.plan.seed)
        self.waiting: dict[bytes, FakeSenderLane] = {}
        """Sender lanes by token, until their receiver connects."""

    def open_endpoint(self, buffers: Sequence[Buffer], settings: EndpointSettings | None = None) -> FakeEndpoint:
        """Makes an endpoint on this network."""
        return FakeEndpoint(Memory(buffers), settings or EndpointSettings(providers=("fake",)), self)


@dataclass(slots=True)
class _Moving:
    """A write in the receiver's hands."""

    transfer: WriteTransfer
    grant: OpenGrant
    dst: IovCursor
    hasher: ChunkHasher | None


class FakeSenderLane:
    """The `SenderLane`; it drives the steps."""

    provider = "fake"

    def __init__(self, network: FakeNetwork, memory: Memory, settings: EndpointSettings, on_event: OnEvent) -> None:
        self.peer: FakeReceiverLane | None = None
        self._network = network
        self._memory = memory
        self._settings = settings
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._writes: dict[int, WriteTransfer] = {}
        self._moving: dict[int, _Moving] = {}
        self._next_write = 0
        self._scheduled = False
        self._lost: TandemError | None = None

    def write(self, src: U64, dst: U64, lengths: U64, grant_id: GrantId, chunk: ChunkIndex) -> Transfer:
        """See `SenderLane.write`."""
        if self._lost is not None:
            raise self._lost
        if len(self._writes) >= MAX_WRITES:
            raise TandemError(ErrorReason.OVERLOADED, f"{MAX_WRITES} writes are under way on this lane")
        ranges = checked_ranges(self._memory, src, dst, lengths, grant_id, chunk)
        self._next_write += 1
        write = WriteTransfer(self._next_write, ranges, grant_id, chunk, self._settings.fence_ms)
        write.withdraw = lambda gone: gone.settle(TransferStatus.CANCELLED)
        write.on_settled = self._forget
        self._writes[write.write_id] = write
        self.schedule()
        return write

    async def close(self) -> None:
        """Cancels what is under way and closes. Idempotent."""
        if self._lost is None:
            for write in list(self._writes.values()):
                write.ask_to_stop()
            self.lose(TandemError(ErrorReason.LINK_LOST, "the lane is closed"), tell=False)

    def lose(self, error: TandemError, *, tell: bool) -> None:
        """Ends the lane, and its other end."""
        if self._lost is not None:
            return
        self._lost = error
        self._network.waiting = {token: lane for token, lane in self._network.waiting.items() if lane is not self}
        for write in list(self._writes.values()):
            write.settle(TransferStatus.FAILED, error)
        if tell:
            self._on_event(LaneLost(error))
        if self.peer is not None:
            self.peer.lose(TandemError(ErrorReason.LINK_LOST, "the peer hung up"), tell=True)

    def schedule(self) -> None:
        """Has a step made soon, if there is something to do."""
        stuck = self.peer is None or self.peer.faults.stalled or self._lost is not None
        if self._writes and not self._scheduled and not stuck:
            self._scheduled = True
            self._loop.call_soon(self._step)

    def _forget(self, write: WriteTransfer) -> None:
        self._writes.pop(write.write_id, None)
        self._moving.pop(write.write_id, None)

    def _step(self) -> None:
        self._scheduled = False
        peer, plan, dice = self.peer, self._network.plan, self._network.random
        if peer is None or not self._writes or self._lost is not None:
            return
        if dice.random() < plan.lose_lane:
            self.lose(TandemError(ErrorReason.LINK_LOST, "the fake network lost the lane"), tell=True)
        elif dice.random() >= plan.idle_step:
            self._move(peer, dice.choice(list(self._writes.values())))
        self.schedule()

    def _move(self, peer: FakeReceiverLane, write: WriteTransfer) -> None:
        try:
            moving = self._moving.get(write.write_id) or self._begin(peer, write)
            moving.transfer.sent += peer.land(moving, self._network.plan.piece_bytes)
        except TandemError as error:
            peer.on_event(ChunkRefused(write.grant_id, write.chunk, error))
            write.settle(TransferStatus.REFUSED, error)
            return
        if not write.left:
            peer.report(moving)
            write.settle(TransferStatus.DONE)

    def _begin(self, peer: FakeReceiverLane, write: WriteTransfer) -> _Moving:
        moving = peer.admit(write)
        iov = self._memory.iov(write.ranges.src, write.ranges.lengths)
        write.cursor = IovCursor(iov)
        if self._settings.checksum:
            write.hasher = ChunkHasher(iov)
            write.hasher.update_to(write.total)
        self._moving[write.write_id] = moving
        return moving


class FakeReceiverLane:
    """The `ReceiverLane`."""

    provider = "fake"

    def __init__(self, memory: Memory, settings: EndpointSettings, on_event: OnEvent, sender: FakeSenderLane) -> None:
        self.on_event = on_event
        self.faults = Faults(settings.faults)
        self._memory = memory
        self._checksum = settings.checksum
        self._sender = sender
        self._grants = GrantTable(memory)
        self._lost: TandemError | None = None

    def grant(self, grant_id: GrantId, offsets: U64, lengths: U64) -> Grant:
        """See `ReceiverLane.grant`."""
        if self._lost is not None:
            raise self._lost
        return self._grants.open(grant_id, offsets, lengths)

    async def close(self) -> None:
        """Revokes every grant and closes. Idempotent."""
        self.lose(TandemError(ErrorReason.LINK_LOST, "the lane is closed"), tell=False)
        await self._grants.revoke_all()

    def lose(self, error: TandemError, *, tell: bool) -> None:
        """Ends the lane, and its other end."""
        if self._lost is not None:
            return
        self._lost = error
        if tell:
            self.on_event(LaneLost(error))
        self._sender.lose(TandemError(ErrorReason.LINK_LOST, "the peer hung up"), tell=True)

    def admit(self, write: WriteTransfer) -> _Moving:
        """Checks a whole write. Raises TandemError(OUT_OF_GRANT or GRANT_CLOSED)."""
        grant = self._grants.admit(write.grant_id, write.ranges.dst, write.ranges.lengths)
        iov = self._memory.iov(write.ranges.dst, write.ranges.lengths)
        return _Moving(write, grant, IovCursor(iov), ChunkHasher(iov) if self._checksum else None)

    def land(self, moving: _Moving, most_bytes: int) -> int:
        """Copies the next bytes of a write. Raises TandemError(GRANT_CLOSED)."""
        if not moving.grant.enter():
            raise TandemError(ErrorReason.GRANT_CLOSED, f"grant {moving.grant.grant_id} was closed")
        landed = 0
        try:
            src = moving.transfer.cursor
            src.window(moving.dst.window(min(most_bytes, src.left)))
            landed = _copy(src, moving.dst)
            chunk, first = int(moving.transfer.chunk), moving.dst.position == 0
            if landed:
                self.faults.after_landing(chunk, moving.dst.run_address, first, landed)
            src.advance(landed)
            moving.dst.advance(landed)
            if moving.hasher:
                moving.hasher.update_to(moving.dst.position)
        finally:
            moving.grant.leave(landed)
        return landed

    def report(self, moving: _Moving) -> None:
        """Tells that a write is whole."""
        checksum = moving.hasher.value() if moving.hasher else None
        write = moving.transfer
        self.on_event(ChunkLanded(write.grant_id, write.chunk, write.total, checksum))


class FakeEndpoint:
    """The `Endpoint`."""

    def __init__(self, memory: Memory, settings: EndpointSettings, network: FakeNetwork | None = None) -> None:
        self._memory = memory
        self._settings = settings
        self._network = network or _everyone
        self._lanes: list[FakeSenderLane | FakeReceiverLane] = []

    async def start(self) -> None:
        """Nothing to do."""

    def offer(self) -> list[ProviderOffer]:
        """Receiver: what it can receive with."""
        return [ProviderOffer(name="fake", memory_bytes=self._memory.bytes)]

    def accept(self, offers: Sequence[ProviderOffer], on_event: OnEvent) -> Accepted:
        """Sender: accepts the receiver. Raises TandemError(NOT_SUPPORTED) if it offers something else."""
        names = [offer.name for offer in offers]
        if "fake" not in names:
            raise TandemError(ErrorReason.NOT_SUPPORTED, f"no provider fits: ours [fake], the receiver's {names}")
        lane = FakeSenderLane(self._network, self._memory, self._settings, on_event)
        token = self._network.random.randbytes(16)
        self._network.waiting[token] = lane
        self._lanes.append(lane)
        answer = ProviderOffer(
            name="fake", address="fake:0", token=token, memory_bytes=self._memory.bytes, reason="fake: asked for"
        )
        return Accepted(answer, lane)

    async def connect(self, answer: ProviderOffer, on_event: OnEvent) -> ReceiverLane:
        """Receiver: opens the lane. Raises TandemError(LINK_LOST) for a token that is unknown or used."""
        sender = self._network.waiting.pop(answer.token, None)
        if sender is None:
            raise TandemError(ErrorReason.LINK_LOST, "the sender refused the lane's token")
        lane = FakeReceiverLane(self._memory, self._settings, on_event, sender)
        sender.peer = lane
        self._lanes.append(lane)
        sender.schedule()
        return lane

    @property
    def queue_pairs_replaced(self) -> int:
        """None: it has none."""
        return 0

    async def close(self) -> None:
        """Closes every lane. Idempotent."""
        for lane in self._lanes:
            await lane.close()
        self._lanes.clear()


def _copy(src: IovCursor, dst: IovCursor) -> int:
    """Copies a window to another one of at least its bytes; returns the bytes."""
    data = b"".join(ctypes.string_at(address, size) for address, size in src.shown.tolist())
    at = 0
    for address, size in dst.shown.tolist():
        part = data[at : at + size]
        ctypes.memmove(address, part, len(part))
        at += len(part)
    return at


_everyone = FakeNetwork()
