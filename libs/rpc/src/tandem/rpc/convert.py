"""Protobuf messages to the core's types and back. `x_to_proto` never fails; `x_from_proto` raises
TandemError(INVALID_ARGUMENT) where a message holds nothing that the core's type could stand for.
Ranges are checked by the core, which knows them.
"""

from __future__ import annotations

from typing import Final

from tandem.core.cluster import LeaveReason, RankEndpoint, WorkerInfo
from tandem.core.errors import ErrorReason, TandemError, reason_of
from tandem.core.ids import Incarnation, RankId, Role, WorkerId, WorkerLife
from tandem.core.layout import KvLayout, PoolLayout
from tandem.core.version import Feature, Protocol
from tandem.v1 import bootstrap_pb2, common_pb2

MAX_MESSAGE_CHARS: Final = 2000
"""Longest text of a failure, in characters."""

_ROLES: Final = {
    Role.PREFILL: common_pb2.ROLE_PREFILL,
    Role.DECODE: common_pb2.ROLE_DECODE,
    Role.UNIFIED: common_pb2.ROLE_UNIFIED,
}
_LEAVE_REASONS: Final = {
    LeaveReason.DEREGISTERED: bootstrap_pb2.LEAVE_REASON_DEREGISTERED,
    LeaveReason.EXPIRED: bootstrap_pb2.LEAVE_REASON_EXPIRED,
    LeaveReason.REPLACED: bootstrap_pb2.LEAVE_REASON_REPLACED,
}
_KNOWN_FEATURES: Final = sum(Feature)


def life_to_proto(life: WorkerLife) -> common_pb2.WorkerRef:
    """WorkerLife to WorkerRef."""
    return common_pb2.WorkerRef(worker_id=life.worker_id, incarnation=life.incarnation)


def life_from_proto(ref: common_pb2.WorkerRef) -> WorkerLife:
    """WorkerRef to WorkerLife."""
    return WorkerLife(WorkerId(ref.worker_id), Incarnation(ref.incarnation))


def role_to_proto(role: Role) -> common_pb2.Role.ValueType:
    """Role to its protobuf value."""
    return _ROLES[role]


def role_from_proto(value: common_pb2.Role.ValueType) -> Role:
    """Protobuf value to Role. Raises INVALID_ARGUMENT for a role that this build does not know."""
    for role, number in _ROLES.items():
        if number == value:
            return role
    allowed = ", ".join(map(common_pb2.Role.Name, _ROLES.values()))
    raise TandemError(ErrorReason.INVALID_ARGUMENT, f"role is {value}, allowed are {allowed}", field="role")


def layout_to_proto(layout: KvLayout) -> common_pb2.KvLayout:
    """KvLayout to its message."""
    return common_pb2.KvLayout(
        page_size=layout.page_size,
        dtype=layout.dtype,
        layers=layout.layers,
        memory_order=layout.memory_order,
        tp_size=layout.tp_size,
        pp_size=layout.pp_size,
        pools=[
            common_pb2.PoolLayout(name=pool.name, item_bytes=pool.item_bytes, entries=pool.entries)
            for pool in layout.pools
        ],
    )


def layout_from_proto(message: common_pb2.KvLayout) -> KvLayout:
    """Message to KvLayout."""
    return KvLayout(
        page_size=message.page_size,
        dtype=message.dtype,
        layers=message.layers,
        memory_order=message.memory_order,
        tp_size=message.tp_size,
        pp_size=message.pp_size,
        pools=tuple(PoolLayout(pool.name, tuple(pool.item_bytes), pool.entries) for pool in message.pools),
    )


def protocol_to_proto(protocol: Protocol) -> common_pb2.ProtocolVersion:
    """Protocol to ProtocolVersion."""
    return common_pb2.ProtocolVersion(major=protocol.major, minor=protocol.minor, feature_bits=int(protocol.features))


def protocol_from_proto(message: common_pb2.ProtocolVersion) -> Protocol:
    """ProtocolVersion to Protocol; feature bits that this build does not know are dropped."""
    return Protocol(message.major, message.minor, Feature(message.feature_bits & _KNOWN_FEATURES))


def rank_to_proto(rank: RankId, kv_link_address: str = "") -> common_pb2.RankAddress:
    """RankId and host:port (empty on decode ranks) to RankAddress."""
    return common_pb2.RankAddress(dp_rank=rank.dp, pp_rank=rank.pp, tp_rank=rank.tp, kv_link_address=kv_link_address)


def rank_from_proto(message: common_pb2.RankAddress) -> RankId:
    """The place that a RankAddress names."""
    return RankId(dp=message.dp_rank, pp=message.pp_rank, tp=message.tp_rank)


def failure_to_proto(reason: ErrorReason, message: str) -> common_pb2.Failure:
    """Reason and text to Failure; the text is cut to 2,000 characters."""
    return common_pb2.Failure(reason=reason.value, message=message[:MAX_MESSAGE_CHARS])


def failure_from_proto(message: common_pb2.Failure) -> tuple[ErrorReason, str]:
    """Failure to reason and text; a reason that this build does not know becomes INTERNAL."""
    return reason_of(message.reason), message.message


def leave_reason_to_proto(reason: LeaveReason) -> bootstrap_pb2.LeaveReason.ValueType:
    """LeaveReason to its protobuf value."""
    return _LEAVE_REASONS[reason]


def leave_reason_from_proto(value: bootstrap_pb2.LeaveReason.ValueType) -> LeaveReason:
    """Protobuf value to LeaveReason; one that this build does not know counts as EXPIRED."""
    return next((reason for reason, number in _LEAVE_REASONS.items() if number == value), LeaveReason.EXPIRED)


def worker_info_to_proto(info: WorkerInfo) -> bootstrap_pb2.WorkerInfo:
    """WorkerInfo to its message."""
    return bootstrap_pb2.WorkerInfo(
        worker=life_to_proto(info.life),
        role=role_to_proto(info.role),
        models=info.models,
        address=info.address,
        layout=layout_to_proto(info.layout),
        ranks=[rank_to_proto(endpoint.rank, endpoint.kv_link_address) for endpoint in info.ranks],
        context_tokens=info.context_tokens,
        max_running=info.max_running,
        draining=info.draining,
        version=protocol_to_proto(info.protocol),
        total_pages=info.total_pages,
        tokenizer_path=info.tokenizer_path,
    )


def worker_info_from_proto(message: bootstrap_pb2.WorkerInfo) -> WorkerInfo:
    """Message to WorkerInfo. Raises INVALID_ARGUMENT for an unknown role."""
    return WorkerInfo(
        life=life_from_proto(message.worker),
        role=role_from_proto(message.role),
        models=tuple(message.models),
        address=message.address,
        layout=layout_from_proto(message.layout),
        ranks=tuple(RankEndpoint(rank_from_proto(rank), rank.kv_link_address) for rank in message.ranks),
        context_tokens=message.context_tokens,
        max_running=message.max_running,
        total_pages=message.total_pages,
        protocol=protocol_from_proto(message.version),
        draining=message.draining,
        tokenizer_path=message.tokenizer_path,
    )
