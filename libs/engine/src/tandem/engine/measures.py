"""What a rank measures of its work, for operators. Plain numbers: counting costs an addition, and takes no lock.

Everything that counts does so from the rank's start and never falls, so nothing is lost where nobody asks for a while.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tandem.core.ids import RankId

MAX_PEERS: Final = 512
"""Pairs of peer and provider that are counted apart."""
OTHER_PEERS: Final = "other"
"""Name of the peers that come after those."""

QUEUE_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROOM_S: Final = QUEUE_S
CHUNK_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
FENCE_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LAG_S: Final = FENCE_S


@dataclass(slots=True)
class Histogram:
    """How often a value fell into each bucket."""

    bounds: Sequence[float]
    """Upper bounds, rising."""
    counts: list[int] = field(default_factory=list)
    """Per bucket; the last one is of what is over every bound."""
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def plus(self, other: Histogram) -> Histogram:
        """Both together; their bounds are the same."""
        counts = [ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)]
        return Histogram(self.bounds, counts, self.sum + other.sum)


@dataclass(slots=True)
class PeerMeasures:
    """What went over the lanes to one peer by one provider."""

    links: int = 0
    """Links that are up now."""
    links_opened: int = 0
    bytes: int = 0
    """Metadata rows included, and of rooms that failed later too."""
    chunks: int = 0
    chunk_s: Histogram = field(default_factory=lambda: Histogram(CHUNK_S))
    """Sender only: from the write of a chunk until the receiver has it."""

    def moved(self, size: int, elapsed_s: float) -> None:
        """Sender: the receiver has a chunk."""
        self.bytes += size
        self.chunks += 1
        self.chunk_s.observe(elapsed_s)

    def landed(self, size: int) -> None:
        """Receiver: a chunk is in memory."""
        self.bytes += size
        self.chunks += 1

    def plus(self, other: PeerMeasures) -> PeerMeasures:
        """Both together."""
        return PeerMeasures(
            self.links + other.links,
            self.links_opened + other.links_opened,
            self.bytes + other.bytes,
            self.chunks + other.chunks,
            self.chunk_s.plus(other.chunk_s),
        )


PeerKey = tuple[str, str]
"""Worker id of the peer, and name of the provider."""


def traffic_of(ranks: Iterable[Mapping[PeerKey, int]]) -> dict[PeerKey, int]:
    """What counts by peer and provider over all ranks, as bounded as that of one."""
    total: dict[PeerKey, int] = {}
    for moved in ranks:
        for key, size in moved.items():
            counted = _counted_as(key, total)
            total[counted] = total.get(counted, 0) + size
    return total


def _counted_as(key: PeerKey, held: Mapping[PeerKey, object]) -> PeerKey:
    """The key itself, as long as there is a place for it; else that of its provider's other peers."""
    return key if key in held or len(held) < MAX_PEERS else (OTHER_PEERS, key[1])


@dataclass(slots=True)
class RankMeasures:
    """One rank since its start."""

    rooms_succeeded: int = 0
    rooms_failed: Counter[str] = field(default_factory=Counter)
    """By ErrorReason."""
    queue_s: Histogram = field(default_factory=lambda: Histogram(QUEUE_S))
    """From a room's ticket until its engine begins: prefill has its first chunk, decode has reserved its pages."""
    room_s: Histogram = field(default_factory=lambda: Histogram(ROOM_S))
    """From there until the room ended well."""
    aborts_sent: int = 0
    aborts_received: int = 0
    revoked: Counter[str] = field(default_factory=Counter)
    """Decode: grants taken back before all that they were for had landed, by provider."""
    prefix_bytes: int = 0
    """Decode: KV that it held already and that was not moved, of rooms whose rest has landed."""
    fence_s: Histogram = field(default_factory=lambda: Histogram(FENCE_S))
    """From the end of a failed room until nothing of it moves any more."""
    lag_s: Histogram = field(default_factory=lambda: Histogram(LAG_S))
    """How late the rank's event loop was."""
    peers: dict[PeerKey, PeerMeasures] = field(default_factory=dict)

    def peer(self, worker_id: str, provider: str) -> PeerMeasures:
        """What is counted for a peer; bind it once per link."""
        return self.peers.setdefault(_counted_as((worker_id, provider), self.peers), PeerMeasures())


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What the process of a rank uses."""

    cpu_s: float
    """So far, user and system."""
    resident_bytes: int
    open_fds: int


@dataclass(frozen=True, slots=True)
class RankReport:
    """One rank at one moment."""

    rank: RankId
    rooms: Counter[str]
    """Open rooms by the state of their machine."""
    rooms_overdue: int
    """Rooms that are past their deadline and have not ended."""
    oldest_room_s: float
    """Age of the oldest open room; 0 if there is none."""
    queue_pairs_replaced: int
    """Verbs: queue pairs that were fenced, or broke, and were made anew."""
    process: ProcessUse
    measures: RankMeasures
