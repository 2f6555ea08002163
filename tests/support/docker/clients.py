"""Clients that ask a stack without a pause while something happens to it, and the judgement of every answer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import httpx

from tests.support.faults.load import CONNECTION, Outcome, Request, ask, draw
from tests.support.mock.oracle import Oracle

NEW_TOKENS: Final = 24
PROMPT_TOKENS: Final = 64
ANSWER_TIMEOUT_S: Final = 60
PATIENCE_S: Final = 40
"""How long a client goes on to look for a gateway that takes its request."""
BETWEEN_TRIES_S: Final = 0.1
WAIT_S: Final = 90


@dataclass(slots=True)
class Clients:
    """What became of the requests so far.

    A client whose gateway can't be reached, or goes before it has said one byte of the answer, asks the next gateway,
    or this one again; that is no failure. Whatever fails once an answer has begun is one.
    """

    gateways: Callable[[], list[str]]
    """Where they are now; asked again whenever none of them took a request."""
    oracle: Oracle
    ended: list[Request] = field(default_factory=list)
    tried_again: int = 0
    _known: list[str] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def more(self, count: int) -> None:
        """Returns once so many more requests are answered right."""
        wanted = self.count(Outcome.ANSWERED) + count
        async with asyncio.timeout(WAIT_S):
            while self.count(Outcome.ANSWERED) < wanted:
                self._changed.clear()
                await self._changed.wait()

    def count(self, outcome: Outcome) -> int:
        """Requests that ended so."""
        return sum(one.outcome is outcome for one in self.ended)

    def failures(self) -> Counter[str]:
        """Requests that were not answered right, by reason."""
        return Counter(
            one.reason or (one.outcome or Outcome.HUNG).value
            for one in self.ended
            if one.outcome is not Outcome.ANSWERED
        )

    async def ask_on(self, dice: random.Random, going: Callable[[], bool]) -> None:
        """One client: the next request as soon as one has ended, a stream and a whole answer in turn."""
        stream = dice.random() < 0.5
        while going():
            stream = not stream
            request = draw(dice, self.oracle, NEW_TOKENS, stream=stream, prompt_tokens=PROMPT_TOKENS)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await self._ask(request, dice)
            except TimeoutError:
                request.outcome = Outcome.HUNG
            self.ended.append(request)
            self._changed.set()

    async def _ask(self, request: Request, dice: random.Random) -> None:
        loop = asyncio.get_running_loop()
        patient_until = loop.time() + PATIENCE_S
        while True:
            for url in dice.sample(self._known, len(self._known)):
                async with httpx.AsyncClient(base_url=url, timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
                    await ask(client, request)
                if request.reason != CONNECTION or request.tokens:
                    return
                if loop.time() > patient_until:
                    return
                self.tried_again += 1
                request.reason = ""
            await asyncio.sleep(BETWEEN_TRIES_S)
            self._known = await asyncio.to_thread(self.gateways)


@asynccontextmanager
async def asking(
    gateways: Callable[[], list[str]], oracle: Oracle, seed: int, count: int = 4
) -> AsyncIterator[Clients]:
    """So many clients ask while the body runs; at its end they wait for their last answers."""
    clients, going = Clients(gateways, oracle), True
    tasks = [
        asyncio.create_task(clients.ask_on(random.Random(seed * 100 + number), lambda: going))
        for number in range(count)
    ]
    try:
        yield clients
        going = False
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
