"""Every test here runs the services in this process."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    """KV travels over sockets, whatever the machine has."""
    monkeypatch.setenv("TANDEM_RANK_PROVIDERS", "tcp")
