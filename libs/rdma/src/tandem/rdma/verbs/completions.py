"""Completions, as the lanes see them."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Completion:
    """A work request that ended."""

    wr_id: int
    status: int
    imm: int
    """Immediate data of a receive request, as the peer gave it."""


def poll(cq: Any, most: int) -> list[Completion]:
    """Takes up to `most` completions; never waits."""
    count, found = cq.poll(most)
    # pyverbs shows the four bytes of immediate data as they travelled: in network order.
    return [Completion(wc.wr_id, wc.status, socket.ntohl(wc.imm_data)) for wc in found] if count else []
