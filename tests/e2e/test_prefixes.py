"""A whole system whose decode workers keep prefixes: what is held is not moved, and no answer changes for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.system.command import tandem
from tests.support.system.conversation import NEW_TOKENS, converse, counted, held_of, pages
from tests.support.system.mock_oracle import PAGE_SIZE
from tests.support.system.reference import References
from tests.support.system.system import System, running_system

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

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
