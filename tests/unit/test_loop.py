"""Tests run on asyncio's own loop, whatever a module that was imported has made the default."""

from __future__ import annotations

import asyncio

import uvloop

# As importing SGLang does, in whichever module of tests that happens first.
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


async def test_the_loop_is_asyncios_own() -> None:
    assert type(asyncio.get_running_loop()).__module__.startswith("asyncio.")


def test_a_loop_that_a_test_makes_is_too() -> None:
    async def module() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert asyncio.run(module()).startswith("asyncio.")
