"""Messages of KvLink, to and from the types of the core and the data path."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tandem.core.errors import TandemError, reason_of
from tandem.core.ids import RankId, RoomId
from tandem.core.room.events import Why
from tandem.core.room.timeline import RoomSpan, Step
from tandem.engine.port import RoomTrace
from tandem.rdma.api import CmaProcess, ProviderOffer
from tandem.v1 import common_pb2, kv_link_pb2, rank_pb2

_STEPS: Final = {step: rank_pb2.RoomStep.Value(f"ROOM_STEP_{step.name}") for step in Step}
_STEP_OF: Final = {number: step for step, number in _STEPS.items()}


def failure(why: Why) -> common_pb2.Failure:
    """A reason as a message."""
    return common_pb2.Failure(reason=why.reason.value, message=why.message[:2000], by_peer=why.by_peer)


def why_of(message: common_pb2.Failure) -> Why:
    """A message as a reason."""
    return Why(reason_of(message.reason), message.message, message.by_peer)


def why_of_peer(message: common_pb2.Failure) -> Why:
    """A message of the other side of a room, whose peer is this one."""
    why = why_of(message)
    return replace(why, by_peer=not why.by_peer)


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


def trace_message(trace: RoomTrace) -> rank_pb2.RoomTrace:
    """A room's trace as a message."""
    spans = [
        rank_pb2.RoomSpan(
            step=_STEPS[span.step],
            start_ns=int(span.start_s * 1e9),
            end_ns=int(span.end_s * 1e9),
            chunk=span.chunk,
            pages=span.pages,
            bytes=span.bytes,
            provider=span.provider,
            first_buffer=span.first_buffer,
            buffers=span.buffers,
            reason=span.reason.value if span.reason is not None else "",
            prefix_tokens=span.prefix_tokens,
        )
        for span in trace.spans
    ]
    return rank_pb2.RoomTrace(
        traceparent=trace.traceparent,
        opened_unix_ns=trace.opened_unix_ns,
        spans=spans,
        dropped_spans=trace.dropped,
    )


def trace_of(message: rank_pb2.RoomTrace, room: RoomId, rank: RankId) -> RoomTrace:
    """A message as a room's trace. Steps that are not known here, of a newer rank, are left out."""
    spans = tuple(
        RoomSpan(
            step=_STEP_OF[span.step],
            start_s=span.start_ns / 1e9,
            end_s=span.end_ns / 1e9,
            chunk=span.chunk,
            pages=span.pages,
            bytes=span.bytes,
            provider=span.provider,
            first_buffer=span.first_buffer,
            buffers=span.buffers,
            reason=reason_of(span.reason) if span.reason else None,
            prefix_tokens=span.prefix_tokens,
        )
        for span in message.spans
        if span.step in _STEP_OF
    )
    return RoomTrace(room, rank, message.traceparent, message.opened_unix_ns, spans, message.dropped_spans)
