"""Messages of KvLink, to and from the types of the core and the data path."""

from __future__ import annotations

from tandem.core.errors import TandemError, reason_of
from tandem.core.room.events import Why
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
