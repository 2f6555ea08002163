"""The Docker engine of these tests: the one that answers, or, if TANDEM_REQUIRE names docker, one started for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.docker.stack import Stack
from tests.support.mock.oracle import Oracle
from tests.support.settings import required_capabilities
from tests.support.system.mock_oracle import tiny_oracle
from tools.docker_engine import engine
from tools.docker_engine.settings import default_directory


@pytest.fixture(scope="session", autouse=True)
def docker_engine() -> Iterator[None]:
    """Answers while these tests run. Whoever starts an engine ends it, with all that it left in the network."""
    wanted = "docker" in required_capabilities()
    started = engine.ensure(default_directory(), with_me=True) if wanted else None
    try:
        yield
    finally:
        if started is not None:
            engine.stop(default_directory())


@pytest.fixture(scope="session")
def images(docker_engine: None) -> None:
    """The images of the profile mock are built."""
    Stack("mock").build()


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """Foretells the mock."""
    return tiny_oracle()
