"""Systems that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.system.mock_oracle import tiny_oracle
from tests.support.system.system import System, running_system


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a module's system."""
    return tmp_path_factory.mktemp("system")


@pytest.fixture(scope="session")
def oracle():
    """Foretells the mock."""
    return tiny_oracle()


@pytest.fixture(scope="module", params=["tcp", "cma"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One prefill and one decode worker with the mock engine, over each provider."""
    options = ("--engine", "mock", "--provider", request.param, "--engine-arg", "chunk_tokens=64")
    with running_system(tmp_path_factory.mktemp(request.param), *options) as system:
        yield system
