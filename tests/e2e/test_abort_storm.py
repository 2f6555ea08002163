"""Hundreds of requests of which most are given up at random moments: pages come back, and the others are right."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.mock.oracle import Oracle
from tests.support.system.asking import Answer, generate, generate_all, streamed
from tests.support.system.system import is_idle, running_system

REQUESTS = 500
GIVEN_UP = 300
AT_ONCE = 48
LONGEST_MS = 600
"""A request is given up at most so long after it began: about as long as the longest take."""
PACE = ("chunk_tokens=64", "prefill_us_per_token=100", "decode_us_per_step=4000")
"""Long prompts take 60 ms and ten chunks, long answers 200 ms."""


@dataclass(frozen=True)
class Ask:
    """One request of the storm."""

    prompt: list[int]
    new_tokens: int
    stream: bool
    give_up_ms: float | None
    """None: it is waited for."""


def storm(seed: int) -> list[Ask]:
    """Requests in a random order."""
    dice = random.Random(seed)
    given_up = [True] * GIVEN_UP + [False] * (REQUESTS - GIVEN_UP)
    dice.shuffle(given_up)
    return [
        Ask(
            [dice.randrange(3, 1000) for _ in range(dice.choice((1, 15, 16, 17, 100, 300, 600)))],
            dice.randrange(1, 50),
            dice.random() < 0.5,
            dice.uniform(0, LONGEST_MS) if gone else None,
        )
        for gone in given_up
    ]


@pytest.mark.parametrize("provider", ["tcp", "cma"])
async def test_pages_come_back_from_requests_that_are_given_up(tmp_path: Path, oracle: Oracle, provider: str) -> None:
    options = [part for one in PACE for part in ("--engine-arg", one)]
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"storm({seed})")  # pytest shows it with a failure
    asks = storm(seed)
    with running_system(tmp_path, "--engine", "mock", "--ratio", "2:2", "--provider", provider, *options) as system:
        async with system.client() as client:
            turn = asyncio.Semaphore(AT_ONCE)
            answers = await asyncio.gather(*(answer_of(client, turn, ask) for ask in asks))
            statuses = await system.wait_idle()
            assert all(is_idle(status) for status in statuses.values()), statuses
            assert sum(status.checksum_failures for status in statuses.values()) == 0
            cut_short = sum(answer is None for answer in answers)
            assert cut_short > GIVEN_UP / 2, "most were over before they could be given up"
            wrong = [
                ask
                for ask, answer in zip(asks, answers, strict=True)
                if answer is not None and differs(oracle, ask, answer)
            ]
            assert not wrong
            prompts = [ask.prompt for ask in asks[:16]]
            after = await generate_all(client, prompts, 8, at_once=16)
            assert [one.tokens for one in after] == [oracle.predict(prompt, 8).tokens for prompt in prompts]


async def answer_of(client: httpx.AsyncClient, turn: asyncio.Semaphore, ask: Ask) -> Answer | None:
    """The answer; None if it was given up before it was there."""
    async with turn:
        asking = (streamed if ask.stream else generate)(client, ask.prompt, ask.new_tokens)
        if ask.give_up_ms is None:
            return await asking
        try:
            async with asyncio.timeout(ask.give_up_ms / 1000):
                return await asking
        except TimeoutError:
            return None


def differs(oracle: Oracle, ask: Ask, answer: Answer) -> bool:
    """Whether an answer is not what the mock must say."""
    wanted = oracle.predict(ask.prompt, ask.new_tokens)
    return (answer.tokens, answer.text) != (wanted.tokens, wanted.text)
