"""What the tests of the command line share."""

from __future__ import annotations

import pytest

from tandem.cli.plan import Machine


@pytest.fixture
def laptop() -> Machine:
    """Two cores, no GPU."""
    return Machine(cores=2)
