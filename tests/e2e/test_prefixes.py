"""A whole system whose decode workers keep prefixes: what is held is not moved, and no answer changes for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.metrics import scrapes
from tests.support.system.asking import Answer, generate, prompt_of
from tests.support.system.command import tandem
from tests.support.system.mock_oracle import PAGE_SIZE
from tests.support.system.reference import References
from tests.support.system.system import System, is_idle, running_system

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

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


# ---------------------------------------------------------------- the mock


@pytest.fixture(scope="module", params=["kept", pytest.param("not kept", marks=pytest.mark.long)])
def mock(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, bool]]:
    """A system with the mock, and whether its decode worker keeps prefixes."""
    options = ["--engine", "mock", "--page-size", str(PAGE_SIZE), "--engine-arg", "chunk_tokens=64"]
    kept = request.param == "kept"
    with running_system(tmp_path_factory.mktemp("mock"), *options, *["--keep-prefixes"] * kept) as system:
        yield system, kept


async def test_a_conversation_with_the_mock(mock: tuple[System, bool], oracle: Any) -> None:
    system, kept = mock
    async with system.client() as client:
        turns = await converse(client)
        response = await client.post(
            "/generate",
            json={"input_ids": turns[-1][0], "sampling_params": {"max_new_tokens": 4}},
            headers={"X-Request-Id": f"again-{kept}"},
        )
        assert response.status_code == 200, response.text
    for talk, answer in turns:
        assert answer.tokens == oracle.predict(talk, NEW_TOKENS, ignore_eos=True).tokens
    last = turns[-1][0]
    held = [count * kept for count in [*held_of(turns), len(last) // PAGE_SIZE]]
    asked = sum(pages(len(talk)) for talk in [*(talk for talk, _ in turns), last])
    assert await counted(system) == (asked - sum(held), sum(held))
    trace = json.loads(tandem(system, "trace", f"again-{kept}", "--json").stdout)
    (receive,) = [span for span in trace["spans"] if span["name"] == "receive"]
    assert receive["attributes"].get("tandem.prefix_tokens", 0) == held[-1] * PAGE_SIZE
    shown = tandem(system, "trace", f"again-{kept}").stdout
    assert (f"held {held[-1] * PAGE_SIZE} tokens" in shown) is kept


# ---------------------------------------------------------------- SGLang


@pytest.mark.sglang
@pytest.mark.long
async def test_a_conversation_is_token_for_token_that_of_plain_sglang(tmp_path: Path) -> None:
    """Twice on one system: the first time each turn's new part moves, then of each prompt the last page at most."""
    with running_system(tmp_path, "--keep-prefixes", "--page-size", str(PAGE_SIZE)) as system:
        async with system.client() as client:
            turns = await converse(client)
            asked, held = sum(pages(len(talk)) for talk, _ in turns), sum(held_of(turns))
            assert await counted(system) == (asked - held, held)
            again = await converse(client)
            held_again = sum(len(talk) // PAGE_SIZE for talk, _ in turns)
            assert await counted(system) == (2 * asked - held - held_again, held + held_again)
    plain = References(tmp_path, [talk for talk, _ in turns], NEW_TOKENS).answers(page_size=PAGE_SIZE)
    assert [answer.tokens for _, answer in turns] == plain
    assert [answer.tokens for _, answer in again] == plain
