"""Streams that run while long prompts keep arriving."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from tandem.cli.bench_pd.numbers import Disturbed, Load, Timing
from tandem.cli.bench_pd.streams import time_stream

STREAM_PROMPT_TOKENS: Final = 32
ARRIVAL_NEW_TOKENS: Final = 4
MOST_ARRIVALS: Final = 64
"""Unanswered at the same time; what would be more is not sent, and counted."""
LONGEST_S: Final = 20.0
"""Nothing arrives after so long: an engine that puts prompts first would never get on with its streams."""


async def disturb(
    address: str, load: Load, streams: int, stream_tokens: int, prompt: Callable[[int], list[int]]
) -> Disturbed:
    """Starts the streams, lets prompts arrive from the first tokens of all to the last of one, and waits for all.

    address: host:port. prompt: makes one of so many tokens. Raises TandemError where an answer is not whole.
    """
    try:
        return await _disturb(address, load, streams, stream_tokens, prompt)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed


async def _disturb(
    address: str, load: Load, streams: int, stream_tokens: int, prompt: Callable[[int], list[int]]
) -> Disturbed:
    running, left = asyncio.Event(), streams

    def one_more() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            running.set()

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(time_stream(address, prompt(STREAM_PROMPT_TOKENS), stream_tokens, one_more))
            for _ in range(streams)
        ]
        await running.wait()
        began = time.perf_counter()
        ended = asyncio.ensure_future(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
        arrivals: list[asyncio.Task[Timing]] = []
        dropped = 0
        while load.per_s and not ended.done() and time.perf_counter() < began + LONGEST_S:
            if sum(not one.done() for one in arrivals) < MOST_ARRIVALS:
                ask = time_stream(address, prompt(load.prompt_tokens), ARRIVAL_NEW_TOKENS)
                arrivals.append(group.create_task(ask))
            else:
                dropped += 1
            due = began + (len(arrivals) + dropped) / load.per_s
            await asyncio.wait([ended], timeout=max(0.0, due - time.perf_counter()))
        await asyncio.wait(tasks)
        seconds = time.perf_counter() - began
    return Disturbed(tuple(one.result() for one in tasks), tuple(one.result() for one in arrivals), seconds, dropped)
