"""Some clients that ask all the time, for as long as somebody watches what becomes of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from tests.support.system.asking import Refused, body, events, prompt_of
from tests.support.system.system import System

PROMPT_TOKENS = (10, 700)
NEW_TOKENS = (10, 120)
PAUSE_S = 0.3


async def _ask_on(client: httpx.AsyncClient, seed: int) -> None:
    dice = random.Random(seed)
    while True:
        request = body(prompt_of(dice.randint(*PROMPT_TOKENS), dice.randrange(1 << 30)), dice.randint(*NEW_TOKENS))
        try:
            async for _ in events(client, "/generate", request):
                pass
        except (Refused, httpx.HTTPError):
            pass  # what clients see of faults is another test's affair
        await asyncio.sleep(dice.random() * PAUSE_S)


@asynccontextmanager
async def traffic(system: System, clients: int) -> AsyncIterator[None]:
    """So many clients, each with one streamed request at a time."""
    async with system.client() as client:
        tasks = [asyncio.create_task(_ask_on(client, seed)) for seed in range(clients)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
