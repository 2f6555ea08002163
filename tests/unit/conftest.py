"""Unit tests run on asyncio's own loop, whatever loop policy an engine's import has set."""

from __future__ import annotations

import asyncio

import pytest


@pytest.fixture(scope="session")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """The plain policy."""
    return asyncio.DefaultEventLoopPolicy()
