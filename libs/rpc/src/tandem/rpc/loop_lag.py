"""How late an event loop runs what is due: what every call of a process waits for at least."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

LAG_INTERVAL_S: Final = 0.1


async def measure_lag(observe: Callable[[float], None]) -> None:
    """Tells, until cancelled, by how many seconds the loop was late each time."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL_S
        await asyncio.sleep(LAG_INTERVAL_S)
        observe(max(0.0, loop.time() - due))
