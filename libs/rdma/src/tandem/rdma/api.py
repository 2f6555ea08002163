"""The public surface of the data path. Whole batches in, one transfer out; never an object per page.

Two processes take part. The **receiver** (decode) owns the destination and grants ranges of it; the **sender**
(prefill) writes under a grant. The receiver's endpoint dials the sender's endpoint, since decode dials prefill:

    receiver: offer = endpoint.offer()                       -> LinkHello.providers
    sender:   accepted = endpoint.accept(offers, on_event)   -> LinkHello.providers (the chosen one), a SenderLane
    receiver: lane = await endpoint.connect(answer, on_event)
    receiver: grant = lane.grant(grant_id, ranges)           -> OfferPages
    sender:   transfer = lane.write(src, dst, lengths, grant_id, chunk)
    sender:   result = await transfer.wait()
    receiver: on_event(ChunkLanded(...))

Offsets are bytes into the flat space of a `Memory`: its buffers one after another, in order. Every call and every
event happens on the endpoint's event loop thread, except where it says otherwise; bulk copies run in the library's
own threads with the GIL released. Nothing here blocks the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tandem.core.errors import TandemError
from tandem.core.ids import ChunkIndex, GrantId

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class DmaBuf:
    """A piece of memory that devices share by a file descriptor, as the Linux kernel has it (dma-buf)."""

    fd: int
    """The caller closes it once its endpoint is closed."""
    offset: int
    """Where the buffer begins in it."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """One contiguous piece of memory that the caller keeps alive as long as the Memory."""

    address: int
    bytes: int
    dmabuf: DmaBuf | None = None
    """Set for memory of a GPU: no processor reads it, so only `verbs` moves it, without checksums."""


@dataclass(frozen=True, slots=True)
class CmaProcess:
    """A process that a receiver of the same host may read; see tandem/v1/kv_link.proto."""

    pid: int
    start_ticks: int
    nonce_address: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class ProviderOffer:
    """One way to move data, as LinkHello carries it; see tandem/v1/kv_link.proto."""

    name: str
    address: str = ""
    token: bytes = b""
    host_identity: str = ""
    cma: CmaProcess | None = None
    memory_bytes: int = 0
    reason: str = ""


# ---------------------------------------------------------------- events of a lane


@dataclass(frozen=True, slots=True)
class ChunkLanded:
    """Receiver: every byte of a chunk is in memory, inside its grant. The receiver's own evidence."""

    grant_id: GrantId
    chunk: ChunkIndex
    bytes: int
    checksum: int | None
    """XXH3-64 of what lies in the receiver's memory, in the order of the write's ranges; None if checksums are off."""


@dataclass(frozen=True, slots=True)
class ChunkRefused:
    """Receiver: a write was refused (OUT_OF_GRANT, GRANT_CLOSED, ...); nothing changed outside its grant."""

    grant_id: GrantId
    chunk: ChunkIndex
    error: TandemError


@dataclass(frozen=True, slots=True)
class LaneLost:
    """The lane is gone: the peer died or hung up. No byte lands over it any more. Sent once."""

    error: TandemError


LaneEvent = ChunkLanded | ChunkRefused | LaneLost
OnEvent = Callable[[LaneEvent], None]


# ---------------------------------------------------------------- transfers and grants


class TransferStatus(Enum):
    """How a transfer ended."""

    DONE = "done"
    """The receiver has every byte."""
    REFUSED = "refused"
    """The receiver refused it."""
    FAILED = "failed"
    """The lane failed."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class TransferResult:
    """End of a transfer."""

    status: TransferStatus
    bytes: int
    checksum: int | None
    """XXH3-64 over the source bytes in the order of the ranges; None if checksums are off."""
    error: TandemError | None
    elapsed_ns: int


class Transfer(Protocol):
    """One write under way."""

    async def wait(self) -> TransferResult:
        """Waits for the end. Raises nothing: the result says how it ended."""

    async def cancel(self) -> None:
        """Stops the write. Returns only when its source is not read any more and it can put no more bytes on the
        way; a partly sent frame that can't be finished in `fence_ms` closes the lane. Idempotent."""


class Grant(Protocol):
    """Leave to write some ranges of the receiver's memory, for one lane."""

    @property
    def grant_id(self) -> GrantId:
        """Its number."""

    @property
    def bytes_landed(self) -> int:
        """Bytes that were written under it."""

    async def revoke(self) -> None:
        """Closes the grant. Returns only when no byte can land under it any more. Idempotent."""


class SenderLane(Protocol):
    """Sender's end of a lane."""

    @property
    def provider(self) -> str:
        """Name of its provider."""

    def write(self, src: U64, dst: U64, lengths: U64, grant_id: GrantId, chunk: ChunkIndex) -> Transfer:
        """Writes lengths[i] bytes from src[i] of the local memory to dst[i] of the remote memory, in order.

        Raises TandemError(INVALID_ARGUMENT) at once for arrays of unequal count, a source range that leaves the local
        memory, or more than `MAX_RANGES` ranges; TandemError(LINK_LOST) if the lane is gone. Ranges that touch on both
        sides are merged first. The source must stay unchanged until the transfer has ended.
        """

    async def close(self) -> None:
        """Cancels what is under way and closes. Idempotent."""


class ReceiverLane(Protocol):
    """Receiver's end of a lane."""

    @property
    def provider(self) -> str:
        """Name of its provider."""

    def grant(self, grant_id: GrantId, offsets: U64, lengths: U64) -> Grant:
        """Opens a grant over ranges of the local memory (any order, not overlapping).

        Raises TandemError(INVALID_ARGUMENT) if a range leaves the memory or the id is in use on this lane,
        TandemError(LINK_LOST) if the lane is gone.
        """

    async def close(self) -> None:
        """Revokes every grant and closes. Returns only when no byte can land over the lane any more. Idempotent."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """Sender's answer to a receiver's offers."""

    answer: ProviderOffer
    """What to send back: the chosen provider, where its lane listens, and why it was chosen."""
    lane: SenderLane
    """Usable at once; writes wait until the receiver has connected."""


class Endpoint(Protocol):
    """One per engine rank: its memory, and the lanes to its peers."""

    async def start(self) -> None:
        """Registers the memory, starts threads and, on a sender, listens. Call once, on the event loop."""

    def offer(self) -> list[ProviderOffer]:
        """Receiver: the providers that this side can receive with, best first."""

    def accept(self, offers: Sequence[ProviderOffer], on_event: OnEvent) -> Accepted:
        """Sender: chooses a provider among the receiver's offers.

        Raises TandemError(NOT_SUPPORTED) naming both sides' providers if none fits.
        """

    async def connect(self, answer: ProviderOffer, on_event: OnEvent) -> ReceiverLane:
        """Receiver: opens the lane that the sender chose.

        Raises TandemError(LINK_LOST) if it can't be reached in time or refuses the token.
        """

    @property
    def queue_pairs_replaced(self) -> int:
        """`verbs`: queue pairs that broke or were fenced, and were made anew, since the start."""

    async def close(self) -> None:
        """Closes every lane and frees everything. Idempotent."""


MAX_RANGES = 1 << 22
"""Most ranges in one write."""


class Direction(Enum):
    """What an endpoint does with its memory: a sender's gives no remote rights away."""

    SEND = "send"
    RECEIVE = "receive"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class VerbsSettings:
    """Settings of the provider `verbs`. Names and codes are those of ibv_modify_qp(3)."""

    devices: tuple[str, ...] = ()
    """Devices to use, each a rail of every lane; empty: every device with an active port."""
    port: int = 1
    gid_index: int = -1
    """Entry of the port's GID table; -1 chooses: RoCE v2 over IPv4 if there is one."""
    pkey_index: int = 0
    mtu: int = 0
    """Code of the largest path MTU, 1 = 256 bytes to 5 = 4096; 0: the port's."""
    service_level: int = 0
    traffic_class: int = 0
    timeout: int = 14
    """Wait for an acknowledgement, 4.096 us * 2^timeout."""
    retry_cnt: int = 6
    """Repeats after that wait. Range 0..6: with 7 some devices never give up."""
    rnr_retry: int = 6
    """Repeats if the peer has posted no receive request. Range 0..6."""
    min_rnr_timer: int = 12
    """Code of the wait before such a repeat; 12 = 0.64 ms."""
    send_depth: int = 512
    """Writes that may be posted on one queue pair."""
    receive_depth: int = 64
    """Receive requests on one queue pair: pieces that may land before the receiver looks."""
    completions: int = 65_536
    """Places of a device's completion queue, shared by its queue pairs; cut to what the device has."""
    piece_bytes: int = 8 << 20
    """Bytes that go over one rail and are acknowledged together."""
    window_bytes: int = 16 << 20
    """Bytes that may be under way on one rail: what a cancelled write waits for."""
    posting: str = "auto"
    """How writes are posted: auto, batch or reference."""


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Settings of an endpoint; the services fill it from their own settings."""

    providers: tuple[str, ...] = ("cma", "tcp")
    """Providers that may be used, best first."""
    bind_host: str = "127.0.0.1"
    """Address that a sender's lanes listen on."""
    advertise_host: str = ""
    """Host that receivers dial; empty: `bind_host`. Set it where that is a wildcard or a container's address."""
    checksum: bool = True
    """Compute a checksum per chunk on both sides."""
    tcp_streams: int = 1
    """TCP connections per lane. Range 1..16."""
    connect_timeout_ms: int = 5_000
    """Longest wait for a lane to open."""
    fence_ms: int = 1_000
    """Longest wait for a cancelled frame to end before the lane is closed."""
    direction: Direction = Direction.BOTH
    """What the memory is for; `verbs` registers it with no more rights than that needs."""
    verbs: VerbsSettings = VerbsSettings()
    """Settings of the provider `verbs`."""
    faults: FaultPlan | None = None
    """Faults to inject; tests only."""


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Faults that tests plant in the receiver's landing path. Logged loudly at start."""

    flip_byte_of_chunk: int | None = None
    """Flips one byte of every landed chunk with this number, after it landed and before its checksum."""
    flip_times: int = 1
    """How often."""
    stall_after_bytes: int | None = None
    """Stops reading the lane after this many bytes, as a stuck receiver would."""
    stall_at_chunk: int | None = None
    """Stops in the midst of a chunk with this number: under way inside its grant, as a stuck device would be."""
    pace_ms: int = 0
    """Waits this long before each piece of a chunk, which keeps a transfer under way."""
