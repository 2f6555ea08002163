"""A conversation with a system whose decode worker may keep prefixes, and what was moved for it."""

from __future__ import annotations

import httpx

from tests.support.metrics import scrapes
from tests.support.system.asking import Answer, generate, prompt_of
from tests.support.system.mock_oracle import PAGE_SIZE
from tests.support.system.system import System, is_idle

SAID = (150, 8, 100, 33)
"""Tokens that the client adds in each turn."""
NEW_TOKENS = 24


def pages(tokens: int) -> int:
    """Pages that a prompt fills."""
    return -(-tokens // PAGE_SIZE)


async def converse(client: httpx.AsyncClient, said: tuple[int, ...] = SAID) -> list[tuple[list[int], Answer]]:
    """A conversation: each prompt is all that was said before, and something new."""
    talk: list[int] = []
    turns = []
    for turn, count in enumerate(said):
        talk = talk + prompt_of(count, 900 + turn)
        answer = await generate(client, talk, NEW_TOKENS, ignore_eos=True)
        turns.append((talk, answer))
        talk = talk + answer.tokens
    return turns


async def counted(system: System) -> tuple[int, float]:
    """Pages of KV that decode has got, and pages that needed no move. Everything must have come back."""
    statuses = await system.wait_idle()
    assert all(is_idle(status) for status in statuses.values()), statuses
    layout = (await system.members())["decode-0"].info.layout
    page_bytes = sum(next(pool for pool in layout.pools if pool.name == "kv").item_bytes)
    text = (await scrapes.scrape(system))["decode-0"]
    (held,) = [
        line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("tandem_kv_prefix_bytes_total ")
    ]
    return statuses["decode-0"].kv_bytes // page_bytes, float(held) / page_bytes


def held_of(turns: list[tuple[list[int], Answer]]) -> list[int]:
    """Pages that decode has of each prompt: all of the turn before, but for the page that was not full."""
    lengths = [len(talk) + NEW_TOKENS for talk, _ in turns[:-1]]
    assert all(length % PAGE_SIZE for length in lengths), (
        "whether an answer's last token is computed is the engine's to say"
    )
    return [0, *(length // PAGE_SIZE for length in lengths)]
