"""A decode worker whose bytes change on their way fails its rooms: it is left out, and comes back once it is well.

Neither it nor prefill can know whose fault that is, so only the comparison with the other decode worker shows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import httpx

from tests.support.mock.oracle import Oracle
from tests.support.system.asking import generate, metric, prompt_of
from tests.support.system.system import System, running_system

FLIPS = 24
"""Rooms that fail: a few more than the twenty that it takes, as these count less the older they are."""
OPTIONS = (
    *("--engine", "mock", "--provider", "tcp", "--ratio", "1:2"),
    *("--env", "decode-1:TANDEM_RANK_FAULT_FLIP_CHUNK=0", "--env", f"decode-1:TANDEM_RANK_FAULT_FLIP_TIMES={FLIPS}"),
    *("--env", "gateway:TANDEM_GATEWAY_DECODE_POLICY=round_robin"),
    *("--env", "gateway:TANDEM_GATEWAY_BREAKER_OPEN_MS=1000"),
)
OPENINGS = 'tandem_gateway_breaker_openings_total{role="decode"}'
OPEN = 'tandem_gateway_breakers{role="decode",state="open"}'
CLOSED = 'tandem_gateway_breakers{role="decode",state="closed"}'
WAIT_S = 60


class Asking:
    """A client, each of whose answers is right."""

    def __init__(self, system: System, client: httpx.AsyncClient, oracle: Oracle) -> None:
        self._system, self._client, self._oracle = system, client, oracle
        self._seeds = count()

    async def ask(self, at_once: int) -> None:
        """So many requests, each of which has to succeed."""
        prompts = [prompt_of(20, next(self._seeds)) for _ in range(at_once)]
        answers = await asyncio.gather(*(generate(self._client, prompt, 4) for prompt in prompts))
        for prompt, answer in zip(prompts, answers, strict=True):
            assert self._oracle.pieces(prompt, answer.tokens) is not None, "a token is wrong"
            assert len(answer.tokens) == len(self._oracle.predict(prompt, 4).tokens)

    async def breakers(self) -> tuple[float, bool]:
        """How often one has opened, and whether one is open now."""
        return await metric(self._client, OPENINGS), await metric(self._client, OPEN) > 0

    async def rooms(self) -> tuple[int, int]:
        """Those that ended well and those that failed on the worker."""
        status = (await self._system.wait_idle())["decode-1"]
        return status.rooms_succeeded, status.rooms_failed

    async def all_are_trusted(self) -> bool:
        """Whether every decode worker gets rooms."""
        return await metric(self._client, CLOSED) == 2


@asynccontextmanager
async def asking(folder: Path, oracle: Oracle) -> AsyncIterator[Asking]:
    """Of a system with one decode worker that is not well at first."""
    with running_system(folder, *OPTIONS) as system:
        async with system.client() as client, asyncio.timeout(WAIT_S):
            yield Asking(system, client, oracle)


async def test_a_worker_that_fails_more_than_the_other_gets_none_for_a_while_then_comes_back(
    tmp_path: Path, oracle: Oracle
) -> None:
    async with asking(tmp_path, oracle) as one:
        while (await one.breakers())[0] == 0:
            await one.ask(8)
        assert (await one.rooms())[1] >= 20
        while True:
            before, had = await one.breakers(), await one.rooms()
            await one.ask(4)
            got, after = await one.rooms(), await one.breakers()
            if before == after and before[1]:
                break
        assert got == had, "it had rooms while it was left out"
        while not await one.all_are_trusted():
            await one.ask(1)
        assert await one.rooms() == (1, FLIPS), "the probes, the last of which went well"
        while (await one.rooms())[0] == 1:
            await one.ask(2)
