"""Settings that every test shares."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.support.capabilities import CAPABILITIES  # noqa: E402 (the line above makes it importable)
from tests.support.rdma_guest import hand_over  # noqa: E402
from tests.support.settings import required_capabilities  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Refuses a TANDEM_REQUIRE with a name that nobody knows."""
    unknown = required_capabilities() - CAPABILITIES.keys()
    if unknown:
        raise pytest.UsageError(f"TANDEM_REQUIRE names {sorted(unknown)}; known are {sorted(CAPABILITIES)}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests on verbs devices to the RDMA guest, of those that -m and -k have left."""
    hand_over(config, items)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Takes back what importing SGLang does to asyncio: it makes uvloop the default.

    uvloop starts a command by fork, and where gRPC has threads the child may crash in gRPC's fork handlers before it is
    that command. asyncio's own loop starts it by vfork, which calls none.
    """
    asyncio.set_event_loop_policy(None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test whose capability this machine lacks, or fails it if TANDEM_REQUIRE names that."""
    for name, missing in CAPABILITIES.items():
        reason = missing() if item.get_closest_marker(name) else None
        if reason is not None and name in required_capabilities():
            pytest.fail(f"TANDEM_REQUIRE={name}, but {reason}", pytrace=False)
        elif reason is not None:
            pytest.skip(reason)
