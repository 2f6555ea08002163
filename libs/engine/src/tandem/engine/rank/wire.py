"""Messages of KvLink, to and from the types of the core and the data path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tandem.core.errors import ErrorReason, TandemError, reason_of
from tandem.core.pages import I64, pack_runs, unpack_runs
from tandem.core.room.events import Why
from tandem.engine.rank.pools import METADATA_POOL, PoolMap
from tandem.rdma.api import CmaProcess, ProviderOffer
from tandem.v1 import common_pb2, kv_link_pb2


def failure(why: Why) -> common_pb2.Failure:
    """A reason as a message."""
    return common_pb2.Failure(reason=why.reason.value, message=why.message[:2000])


def why_of(message: common_pb2.Failure) -> Why:
    """A message as a reason."""
    return Why(reason_of(message.reason), message.message)


def why_from(error: TandemError) -> Why:
    """An error as a reason."""
    return Why(error.reason, error.message)


def provider_message(offer: ProviderOffer) -> kv_link_pb2.ProviderOffer:
    """A provider offer as a message."""
    message = kv_link_pb2.ProviderOffer(
        name=offer.name,
        address=offer.address,
        token=offer.token,
        host_identity=offer.host_identity,
        memory_bytes=offer.memory_bytes,
        reason=offer.reason,
    )
    if offer.cma is not None:
        message.cma.CopyFrom(
            kv_link_pb2.CmaProcess(
                pid=offer.cma.pid,
                start_ticks=offer.cma.start_ticks,
                nonce_address=offer.cma.nonce_address,
                nonce=offer.cma.nonce,
            )
        )
    return message


def provider_of(message: kv_link_pb2.ProviderOffer) -> ProviderOffer:
    """A message as a provider offer."""
    cma = None
    if message.HasField("cma"):
        cma = CmaProcess(message.cma.pid, message.cma.start_ticks, message.cma.nonce_address, message.cma.nonce)
    return ProviderOffer(
        name=message.name,
        address=message.address,
        token=message.token,
        host_identity=message.host_identity,
        cma=cma,
        memory_bytes=message.memory_bytes,
        reason=message.reason,
    )


def pack_entries(entries: Sequence[I64]) -> Iterable[kv_link_pb2.PoolEntries]:
    """entries[p] of every pool p but the metadata pool, packed as runs."""
    for pool, index in enumerate(entries):
        if index.size and pool != METADATA_POOL:
            runs = pack_runs(index)
            yield kv_link_pb2.PoolEntries(pool=pool, starts=runs.starts.tolist(), lengths=runs.lengths.tolist())


def unpack_offer(offer: kv_link_pb2.OfferPages, theirs: PoolMap, pools: int) -> list[I64]:
    """The granted entries per pool, the metadata row among them.

    Raises TandemError(PROTOCOL_VIOLATION) for pools or entries that the peer's layout does not have.
    """
    entries: list[I64] = [np.empty(0, np.int64) for _ in range(pools)]
    for part in offer.entries:
        if part.pool == METADATA_POOL or entries[part.pool].size if part.pool < pools else True:
            raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"offer names pool {part.pool} wrongly")
        entries[part.pool] = unpack_runs(part.starts, part.lengths, theirs.entries(part.pool))
    if not 0 <= offer.metadata_row < theirs.entries(METADATA_POOL):
        raise TandemError(ErrorReason.PROTOCOL_VIOLATION, f"offer names metadata row {offer.metadata_row}")
    entries[METADATA_POOL] = np.array([offer.metadata_row], np.int64)
    return entries
