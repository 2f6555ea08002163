"""Stand-ins for the CUDA driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cuda.standin import StandIn, build


@pytest.fixture(scope="session")
def standin_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled stand-in."""
    return build(tmp_path_factory.mktemp("standin"))


@pytest.fixture
def make_standin(standin_library: Path, tmp_path: Path) -> Callable[[str], StandIn]:
    """Makes drivers that know nothing of each other, by name."""
    return lambda name: StandIn(standin_library, tmp_path / name)


@pytest.fixture
def standin(make_standin: Callable[[str], StandIn]) -> Iterator[StandIn]:
    """One driver."""
    made = make_standin("one")
    yield made
    made.hold(False)
