"""What a worker and its ranks tell others of themselves, where the settings leave it open."""

from __future__ import annotations

import socket

import pytest
from pydantic import ValidationError

from tandem.decode.settings import DecodeSettings
from tandem.engine.rank.settings import RankSettings
from tandem.prefill.settings import PrefillSettings
from tandem.rdma.api import Direction
from tandem.rpc import addresses


def test_a_worker_without_a_name_has_its_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "3de09adab4a0")
    assert PrefillSettings().worker_id == "prefill-3de09adab4a0"
    assert DecodeSettings().worker_id == "decode-3de09adab4a0"
    assert DecodeSettings(worker_id="decode-0").worker_id == "decode-0"


def test_a_bad_name_is_refused() -> None:
    with pytest.raises(ValidationError):
        DecodeSettings(worker_id="a b")


def test_a_wildcard_is_never_advertised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "own_address", lambda: "10.1.2.3")
    assert DecodeSettings(host="0.0.0.0").host_to_dial == "10.1.2.3"
    assert DecodeSettings().host_to_dial == "127.0.0.1"
    rank = RankSettings(bind_host="0.0.0.0")
    assert (rank.host, rank.endpoint(Direction.SEND).advertise_host) == ("10.1.2.3", "10.1.2.3")
    assert RankSettings(bind_host="0.0.0.0", advertise_host="node-7").host == "node-7"
