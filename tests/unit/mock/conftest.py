"""Pairs of mock engines over doubles of their ranks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from tests.support.mock.pair import Pair, settings_of
from tests.support.mock.ranks import Wire

StartPair = Callable[..., Awaitable[Pair]]


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest_asyncio.fixture
async def start_pair(wire: Wire) -> AsyncIterator[StartPair]:
    """Starts pairs with changed settings; closes them at the end."""
    pairs: list[Pair] = []

    async def start(**changes: Any) -> Pair:
        pairs.append(Pair(settings_of(**changes), wire.make))
        return await pairs[-1].start()

    yield start
    for pair in pairs:
        await pair.close()
