"""Counters and gauges of a rank."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem.engine.measures import PeerKey, RankMeasures


@dataclass(slots=True)
class RankCounters:
    """Counters count from the rank's start; see WorkerStatus in tandem/v1/session.proto."""

    open_rooms: int = 0
    rooms_succeeded: int = 0
    rooms_failed: int = 0
    kv_bytes: int = 0
    metadata_bytes: int = 0
    kv_chunks: int = 0
    stale_messages: int = 0
    checksum_failures: int = 0
    granted_pages: int = 0
    granted_rows: int = 0
    granted_states: dict[str, int] = field(default_factory=dict)
    """Name of a state component's pool to its entries under an open grant."""
    links: dict[str, str] = field(default_factory=dict)
    """Peer worker id to provider name, of links that are up."""
    measures: RankMeasures = field(default_factory=RankMeasures)
    """What operators see of it; WorkerStatus has the bytes of it."""

    @property
    def traffic(self) -> dict[PeerKey, int]:
        """Bytes moved by peer and provider."""
        return {key: found.bytes for key, found in self.measures.peers.items()}

    @property
    def moving_us(self) -> dict[PeerKey, int]:
        """Sender: microseconds that chunks took, by peer and provider."""
        return {key: round(found.chunk_s.sum * 1e6) for key, found in self.measures.peers.items()}
