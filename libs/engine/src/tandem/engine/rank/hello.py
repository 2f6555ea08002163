"""The two Hellos of a link: what each side says, and what it checks of the other's."""

from __future__ import annotations

from collections.abc import Sequence

from tandem.core import version
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import LinkEpoch, RankId, WorkerLife
from tandem.core.layout import KvLayout, require_fit
from tandem.engine.rank import wire
from tandem.rdma.api import ProviderOffer
from tandem.rpc import convert
from tandem.v1 import kv_link_pb2


def hello(
    protocol: version.Protocol,
    ours: WorkerLife,
    peer: WorkerLife,
    rank: RankId,
    layout: KvLayout,
    providers: Sequence[ProviderOffer],
    *,
    epoch: LinkEpoch | None = None,
    offer_credit: int = 0,
) -> kv_link_pb2.LinkHello:
    """What this side says. Prefill adds the epoch and the credit."""
    return kv_link_pb2.LinkHello(
        version=convert.protocol_to_proto(protocol),
        worker=convert.life_to_proto(ours),
        peer=convert.life_to_proto(peer),
        rank=convert.rank_to_proto(rank),
        layout=convert.layout_to_proto(layout),
        link_epoch=epoch or 0,
        providers=[wire.provider_message(offer) for offer in providers],
        offer_credit=offer_credit,
    )


def check(
    message: kv_link_pb2.LinkHello, protocol: version.Protocol, ours: WorkerLife, rank: RankId, layout: KvLayout
) -> tuple[WorkerLife, version.Feature]:
    """Checks the other side's Hello; returns its life, and the features that both sides may use.

    Raises TandemError: VERSION_MISMATCH, STALE_INCARNATION if it means another life of this worker, LAYOUT_MISMATCH
    for a layout or a rank that does not fit.
    """
    peer = convert.life_from_proto(message.worker)
    features = version.agree(protocol, convert.protocol_from_proto(message.version), str(peer))
    meant = convert.life_from_proto(message.peer)
    if meant != ours:
        raise TandemError(ErrorReason.STALE_INCARNATION, f"{peer} wants {meant}, this is {ours}")
    theirs = convert.rank_from_proto(message.rank)
    if (theirs.pp, theirs.tp) != (rank.pp, rank.tp):
        raise TandemError(ErrorReason.LAYOUT_MISMATCH, f"rank {theirs} of {peer} does not pair with rank {rank}")
    require_fit(layout, convert.layout_from_proto(message.layout), str(ours), str(peer))
    return peer, features
