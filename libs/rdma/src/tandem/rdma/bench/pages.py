"""What both processes of the benchmark share: the pools, the scattered pages and the endpoints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tandem.core.ids import GrantId
from tandem.rdma.api import U64, Buffer, Direction, Endpoint, EndpointSettings, VerbsSettings
from tandem.rdma.endpoint import open_endpoint

GRANT = GrantId(1)
"""The grant over the whole pool, on every lane."""
PLAIN_STEP_BYTES = 1 << 20
"""What the plain stream's receiver asks for at a time."""

Pool = npt.NDArray[np.uint8]


def make_pool(total_bytes: int, fill: int) -> Pool:
    """A pool whose pages are all touched."""
    return np.full(total_bytes, fill, np.uint8)


def scattered(total_bytes: int, page_bytes: int, seed: int) -> U64:
    """Offsets of every page of a pool, in a random order."""
    pages = np.random.default_rng(seed).permutation(total_bytes // page_bytes)
    return pages.astype(np.uint64) * np.uint64(page_bytes)


@dataclass(frozen=True, slots=True)
class Way:
    """How one of the benchmark's lanes moves pages."""

    provider: str
    checksum: bool
    streams: int
    devices: tuple[str, ...] = ()
    """Verbs devices of this end; empty for other providers."""


def open_pool(pool: Pool, way: Way, direction: Direction) -> Endpoint:
    """An endpoint over a pool, with one provider."""
    settings = EndpointSettings(
        providers=(way.provider,),
        checksum=way.checksum,
        tcp_streams=way.streams,
        direction=direction,
        verbs=VerbsSettings(devices=way.devices),
    )
    return open_endpoint([Buffer(int(pool.ctypes.data), pool.nbytes)], settings)
