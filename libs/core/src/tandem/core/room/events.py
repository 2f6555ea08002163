"""What goes into the room machines, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tandem.core.errors import ErrorReason
from tandem.core.ids import ChunkIndex, GrantId


class Phase(Enum):
    """What an engine sees of a room, the same for both sides."""

    BOOTSTRAPPING = "bootstrapping"
    """The other side is not ready."""
    WAITING = "waiting"
    """The engine may go on: prefill compute, decode offer pages."""
    TRANSFERRING = "transferring"
    SUCCESS = "success"
    FAILED = "failed"
    """Failed, and quiet: no byte can land and none is read any more."""


@dataclass(frozen=True, slots=True)
class Why:
    """Reason of a failure."""

    reason: ErrorReason
    message: str
    by_peer: bool = False
    """Whether the other side failed, and this one heard of it."""


# ---------------------------------------------------------------- inputs


@dataclass(frozen=True, slots=True)
class Offer:
    """Sender: decode granted its pages."""

    grant_id: GrantId


@dataclass(frozen=True, slots=True)
class ChunkReady:
    """Sender: the engine finished a chunk. The shell keeps its ranges under `chunk`."""

    chunk: ChunkIndex
    last: bool


@dataclass(frozen=True, slots=True)
class ChunkMoved:
    """Sender: the transfer of a chunk is finished."""

    chunk: ChunkIndex
    bytes: int
    checksum: int | None


@dataclass(frozen=True, slots=True)
class LandedByPeer:
    """Sender: decode verified the room."""

    grant_id: GrantId


@dataclass(frozen=True, slots=True)
class LinkUp:
    """Receiver: the link and the lane to the prefill rank are there."""


@dataclass(frozen=True, slots=True)
class PagesReserved:
    """Receiver: the engine reserved pages; the shell opened `grant_id` over `bytes` of them."""

    grant_id: GrantId
    bytes: int


@dataclass(frozen=True, slots=True)
class ChunkSeen:
    """Receiver: own evidence that a chunk's bytes are in memory."""

    grant_id: GrantId
    chunk: ChunkIndex
    bytes: int
    checksum: int | None


@dataclass(frozen=True, slots=True)
class ChunkClaimed:
    """Receiver: prefill says what a chunk must be."""

    grant_id: GrantId
    chunk: ChunkIndex
    bytes: int
    checksum: int | None


@dataclass(frozen=True, slots=True)
class CompleteClaimed:
    """Receiver: prefill says what the room must be."""

    grant_id: GrantId
    chunks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PeerAborted:
    """The other side gave the room up."""

    why: Why


@dataclass(frozen=True, slots=True)
class PeerQuiet:
    """AbortAck: nothing of the other side can touch the room's pages any more."""


@dataclass(frozen=True, slots=True)
class Broken:
    """This side must give the room up: the engine's or the service's wish, a failed transfer, a lost link or peer."""

    why: Why


@dataclass(frozen=True, slots=True)
class Quiet:
    """This side's own transfers (sender) or grant (receiver) are fenced: nothing of it moves any more."""

    why: Why | None = None
    """Receiver, verified: what kept the KV from the engine's own memory. The room fails of it after all."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; the machine looks at its deadlines."""


Input = (
    Offer
    | ChunkReady
    | ChunkMoved
    | LandedByPeer
    | LinkUp
    | PagesReserved
    | ChunkSeen
    | ChunkClaimed
    | CompleteClaimed
    | PeerAborted
    | PeerQuiet
    | Broken
    | Quiet
    | Tick
)

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class StartTransfer:
    """Sender: write the chunk under the room's grant; answer with ChunkMoved or Broken."""

    chunk: ChunkIndex


@dataclass(frozen=True, slots=True)
class SendChunkDone:
    """Sender: tell decode what a chunk must be."""

    chunk: ChunkIndex
    bytes: int
    checksum: int | None


@dataclass(frozen=True, slots=True)
class SendComplete:
    """Sender: tell decode what the room must be."""

    chunks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SendOffer:
    """Receiver: offer the reserved pages."""

    grant_id: GrantId


@dataclass(frozen=True, slots=True)
class SendLanded:
    """Receiver: the room is verified."""

    grant_id: GrantId


@dataclass(frozen=True, slots=True)
class SendAbort:
    """Tell the other side that the room is given up."""

    why: Why


@dataclass(frozen=True, slots=True)
class SendAbortAck:
    """Tell the other side that this side is quiet."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Sender: cancel the room's transfers. Receiver: revoke the grant. Answer with Quiet."""


@dataclass(frozen=True, slots=True)
class CloseGrant:
    """Receiver: the room is verified; close its grant and answer with Quiet."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The room has reached its one terminal state. `why` is None for success."""

    why: Why | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A late, stale, duplicate or impossible message was ignored; the shell counts it."""

    what: str


Effect = (
    StartTransfer
    | SendChunkDone
    | SendComplete
    | SendOffer
    | SendLanded
    | SendAbort
    | SendAbortAck
    | Fence
    | CloseGrant
    | Ended
    | Refused
)
