"""Who may change a running system: names, places, and a list that leaves no method out."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.operators import CHANGES, Operators, caller, changed, names_in, place_of
from tandem.v1 import admin_pb2, control_pb2, decode_pb2, prefill_pb2, system_pb2, unified_pb2

METHOD = "/tandem.v1.AdminService/SetPolicy"
READS = {
    "/tandem.v1.AdminService/ListClusterWorkers",
    "/tandem.v1.AdminService/GetTrace",
    "/tandem.v1.AdminService/ListRooms",
    "/tandem.v1.AdminService/WatchCluster",
    "/tandem.v1.ControlService/GetSettings",
}
"""Methods that change nothing."""
WORKERS = ("PrefillService", "DecodeService", "UnifiedService")
OF_WORKERS = ("Session", "GetStatus", "WatchStatus", "WatchHeldPages", "ListRankRooms")
"""Methods of theirs that change nothing, and the one that is the gateways'."""
ADMINS = frozenset({"tandem-admin"})


@dataclass
class Call:
    """What gRPC says of a caller."""

    from_: str = "ipv4:127.0.0.1:4000"
    certificate: dict[str, list[bytes]] = field(default_factory=dict)

    def peer(self) -> str:
        return self.from_

    def auth_context(self) -> dict[str, list[bytes]]:
        return self.certificate


def of_name(name: str) -> Call:
    """A caller from far away with a certificate."""
    return Call("ipv4:10.0.0.7:4000", {"x509_common_name": [name.encode()]})


def test_every_method_either_changes_something_or_does_not() -> None:
    files = (admin_pb2, control_pb2, system_pb2, prefill_pb2, decode_pb2, unified_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    methods = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    unchanged = READS | {f"/tandem.v1.{service}/{name}" for service in WORKERS for name in OF_WORKERS}
    assert methods == unchanged | CHANGES
    assert not unchanged & CHANGES


@pytest.mark.parametrize(
    ("peer", "place"),
    [
        ("ipv4:127.0.0.1:4000", "127.0.0.1:4000"),
        ("ipv6:%5B::1%5D:4000", "[::1]:4000"),
        ("ipv6:[::ffff:127.0.0.1]:4000", "127.0.0.1:4000"),
        ("unix:/tmp/x.sock", "unix:/tmp/x.sock"),
    ],
)
def test_callers_on_this_machine_may_without_certificates(peer: str, place: str) -> None:
    assert place_of(peer) == place
    Operators(ADMINS, secure=False).admit(METHOD, Call(peer))  # type: ignore[arg-type]
    assert caller.get() == f"this machine at {place}"


@pytest.mark.parametrize("peer", ["ipv4:10.0.0.7:4000", "ipv6:%5Bfe80::1%5D:4000", "ipv6:[::ffff:10.0.0.7]:1"])
def test_others_may_not(peer: str) -> None:
    operators = Operators(ADMINS, secure=False)
    with pytest.raises(TandemError, match=r"SetPolicy is for operators: without TLS") as refused:
        operators.admit(METHOD, Call(peer))  # type: ignore[arg-type]
    assert refused.value.reason is ErrorReason.FORBIDDEN
    operators.admit("/tandem.v1.AdminService/ListRooms", Call(peer))  # type: ignore[arg-type]


def test_a_certificate_has_a_common_name_and_alternative_ones() -> None:
    assert names_in({"x509_common_name": [b"a"]}) == ("a",)
    both = {"x509_common_name": [b"gateway"], "x509_subject_alternative_name": [b"gateway", b"localhost"]}
    assert names_in(both) == ("gateway", "localhost")
    assert names_in({}) == ()


def test_with_certificates_only_named_ones_may_wherever_they_are(caplog: pytest.LogCaptureFixture) -> None:
    operators = Operators(ADMINS, secure=True)
    operators.admit(METHOD, of_name("tandem-admin"))  # type: ignore[arg-type]
    assert caller.get() == "tandem-admin at 10.0.0.7:4000"
    with pytest.raises(TandemError, match=r"says gateway, allowed is tandem-admin \(TANDEM_TLS_ADMIN_IDENTITIES\)"):
        operators.admit(METHOD, of_name("gateway"))  # type: ignore[arg-type]
    assert "refused: AdminService/SetPolicy is for operators" in caplog.text
    with pytest.raises(TandemError, match="no name"):
        operators.admit(METHOD, Call())  # type: ignore[arg-type]
    operators.admit(METHOD, Call("unix:/tmp/x.sock"))  # type: ignore[arg-type]


def test_changes_are_recorded_whatever_the_level_is(caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        caller.set("tandem-admin at 10.0.0.7:4000")
        changed("policy of decode", "least_load", "random")
    finally:
        root.setLevel(before)
    assert caplog.messages == ["tandem-admin at 10.0.0.7:4000: policy of decode: least_load -> random"]


def test_callers_of_what_services_call_are_recorded_and_not_refused() -> None:
    Operators(ADMINS, secure=True).admit("/tandem.v1.BootstrapService/Drain", of_name("gateway"))  # type: ignore[arg-type]
    assert caller.get() == "gateway at 10.0.0.7:4000"
    Operators(ADMINS, secure=False).admit("/tandem.v1.BootstrapService/Drain", Call("ipv4:10.0.0.7:4"))  # type: ignore[arg-type]
    assert caller.get() == "somebody at 10.0.0.7:4"
