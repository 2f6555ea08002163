"""The KV data path: registered memory, grants, lanes and transfers, over verbs, cma, tcp and fake.

Start with `tandem.rdma.api`: it is the whole public surface. `tandem.rdma.open_endpoint` makes an endpoint.
"""

from __future__ import annotations

from tandem.rdma.api import (
    Accepted,
    Buffer,
    ChunkLanded,
    ChunkRefused,
    CmaProcess,
    Direction,
    Endpoint,
    EndpointSettings,
    FaultPlan,
    Grant,
    LaneEvent,
    LaneLost,
    ProviderOffer,
    ReceiverLane,
    SenderLane,
    Transfer,
    TransferResult,
    TransferStatus,
    VerbsSettings,
)
from tandem.rdma.endpoint import open_endpoint

__all__ = [
    "Accepted",
    "Buffer",
    "ChunkLanded",
    "ChunkRefused",
    "CmaProcess",
    "Direction",
    "Endpoint",
    "EndpointSettings",
    "FaultPlan",
    "Grant",
    "LaneEvent",
    "LaneLost",
    "ProviderOffer",
    "ReceiverLane",
    "SenderLane",
    "Transfer",
    "TransferResult",
    "TransferStatus",
    "VerbsSettings",
    "open_endpoint",
]
