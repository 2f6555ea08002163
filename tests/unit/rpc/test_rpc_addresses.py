"""A host that others can dial is told, never a wildcard."""

from __future__ import annotations

import socket

import pytest

from tandem.rpc import addresses
from tandem.rpc.addresses import host_to_dial, own_address


def test_what_is_advertised_wins() -> None:
    assert host_to_dial("0.0.0.0", "worker.example") == "worker.example"
    assert host_to_dial("10.0.0.7") == "10.0.0.7"


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::", "[::]"])
def test_a_wildcard_becomes_an_address_of_this_machine(wildcard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_routed_address", lambda: "10.1.2.3")
    assert host_to_dial(wildcard) == "10.1.2.3"


def test_without_a_route_the_host_name_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_route() -> str:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(addresses, "_routed_address", no_route)
    monkeypatch.setattr(socket, "gethostname", lambda: "3de09adab4a0")
    monkeypatch.setattr(socket, "gethostbyname", {"3de09adab4a0": "172.18.0.4"}.__getitem__)
    assert own_address() == "172.18.0.4"
