"""Messages to the core's types and back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tandem.core.cluster import LeaveReason
from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import Incarnation, RankId, Role, WorkerId, WorkerLife
from tandem.core.version import Feature, Protocol
from tandem.rpc import convert
from tandem.v1 import bootstrap_pb2, common_pb2
from tests.support.bootstrap.workers import LAYOUT, worker


def test_every_field_of_a_worker_comes_back():
    info = worker("d1", Role.DECODE, incarnation=2**62, draining=True, models=("a", "b"))
    info = replace(info, tokenizer_path="models/b")
    message = convert.worker_info_to_proto(info)
    assert {field.name for field, _ in message.ListFields()} == set(bootstrap_pb2.WorkerInfo.DESCRIPTOR.fields_by_name)
    wire = bootstrap_pb2.WorkerInfo.FromString(message.SerializeToString())
    assert convert.worker_info_from_proto(wire) == info


def test_layout():
    assert convert.layout_from_proto(convert.layout_to_proto(LAYOUT)) == LAYOUT


def test_life_and_rank():
    life = WorkerLife(WorkerId("w"), Incarnation(7))
    assert convert.life_from_proto(convert.life_to_proto(life)) == life
    rank = RankId(dp=1, pp=2, tp=3)
    message = convert.rank_to_proto(rank, "h:1")
    assert message.kv_link_address == "h:1"
    assert convert.rank_from_proto(message) == rank


@pytest.mark.parametrize("role", Role)
def test_roles(role):
    assert convert.role_from_proto(convert.role_to_proto(role)) is role


@pytest.mark.parametrize("value", [0, 99])
def test_unknown_roles_are_refused(value):
    with pytest.raises(TandemError) as caught:
        convert.role_from_proto(value)
    assert caught.value.reason is ErrorReason.INVALID_ARGUMENT
    assert caught.value.field == "role"


def test_unknown_feature_bits_are_dropped():
    message = common_pb2.ProtocolVersion(major=1, minor=2, feature_bits=2**63 | 1)
    assert convert.protocol_from_proto(message) == Protocol(1, 2, Feature.CHUNK_CHECKSUM)
    full = Protocol(3, 4, Feature.CHUNK_CHECKSUM | Feature.DECODE_PREFIX)
    assert convert.protocol_from_proto(convert.protocol_to_proto(full)) == full


@pytest.mark.parametrize("reason", LeaveReason)
def test_leave_reasons(reason):
    assert convert.leave_reason_from_proto(convert.leave_reason_to_proto(reason)) is reason


def test_failures():
    message = convert.failure_to_proto(ErrorReason.PEER_LOST, "x" * 3000)
    assert convert.failure_from_proto(message) == (ErrorReason.PEER_LOST, "x" * 2000)
    assert convert.failure_from_proto(common_pb2.Failure(reason="FUTURE"))[0] is ErrorReason.INTERNAL
