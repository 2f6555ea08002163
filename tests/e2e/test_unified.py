"""A unified worker beside a pair, with the mock engine: who gets which prompt, and who takes over from whom."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tandem.cli.cluster import set_draining
from tandem.cli.trace import trace_of
from tandem.rpc.credentials import PLAIN
from tests.support.mock.oracle import Oracle
from tests.support.system.asking import body, events, generate, metric, prompt_of, seen_draining, streamed
from tests.support.system.system import System, is_idle, running_system

LIMIT = 64
SHORT, LONG = prompt_of(LIMIT), prompt_of(LIMIT + 1, seed=1)
UNIFIED = ("--unified", "1", "--env", f"gateway:TANDEM_GATEWAY_UNIFIED_MAX_PROMPT_TOKENS={LIMIT}")
SLOW = ("--engine-arg", "decode_us_per_step=20000")
"""A stream of 200 tokens takes four seconds."""


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A pair and a unified worker."""
    with running_system(tmp_path_factory.mktemp("beside"), "--engine", "mock", *UNIFIED) as system:
        yield system


async def served(system: System) -> tuple[int, int]:
    """Rooms that the unified worker and the decode worker have ended well, once nothing runs."""
    statuses = await system.wait_idle()
    assert all(is_idle(status) for status in statuses.values()), statuses
    return statuses["unified-0"].rooms_succeeded, statuses["decode-0"].rooms_succeeded


async def test_short_prompts_go_to_the_unified_worker_and_long_ones_to_the_pair(beside: System, oracle: Oracle) -> None:
    unified, decode = await served(beside)
    async with beside.client() as client:
        for ask in (generate, streamed):
            for prompt in (SHORT, LONG):
                answer = await ask(client, prompt, 12)
                wanted = oracle.predict(prompt, 12)
                assert (answer.tokens, answer.text) == (wanted.tokens, wanted.text)
                assert answer.meta["prompt_tokens"] == len(prompt)
        assert await metric(client, 'tandem_gateway_workers{role="unified",state="ready"}') == 1
    assert await served(beside) == (unified + 2, decode + 2)
    assert (await beside.statuses())["unified-0"].links == []


async def test_a_trace_and_the_lists_show_it(beside: System) -> None:
    async with beside.client() as client:
        response = await client.post("/generate", json=body(SHORT, 4), headers={"X-Request-Id": "shown-unified"})
        assert response.status_code == 200, response.text
    trace = await trace_of(beside.state.admin, "shown-unified", PLAIN)
    legs = [span for span in trace.spans if span.service == "tandem-unified"]
    assert {span.name for span in legs} == {"unified", "ticket", "generate"}
    [attempt] = [span for span in trace.spans if span.name == "attempt"]
    assert str(attempt.attributes["tandem.unified.worker"]).startswith("unified-0@")
    [first] = [span for span in trace.spans if span.name == "first_token"]
    assert first.attributes["tandem.first_token.source"] == "unified"
    members = await beside.members()
    assert {name: member.role for name, member in members.items()} == {
        "prefill-0": "prefill",
        "decode-0": "decode",
        "unified-0": "unified",
    }


async def test_log_probabilities_come_with_the_answer(beside: System) -> None:
    request = {"model": "tandem-tiny", "prompt": SHORT, "max_tokens": 4, "logprobs": 2, "echo": True}
    async with beside.client() as client:
        response = await client.post("/v1/completions", json=request)
    assert response.status_code == 200, response.text
    found = response.json()["choices"][0]["logprobs"]["token_logprobs"]
    assert found[0] is None
    assert len(found) > LIMIT
    assert all(isinstance(one, float) for one in found[1:])


@pytest.mark.parametrize(("lacking", "role", "prompt"), [("decode-0", "decode", LONG), ("unified-0", "unified", SHORT)])
async def test_each_takes_over_where_the_other_drains(
    beside: System, oracle: Oracle, lacking: str, role: str, prompt: list[int]
) -> None:
    unified, decode = await served(beside)
    async with beside.client() as client:
        await set_draining(beside.state.bootstrap, lacking, draining=True, credentials=PLAIN)
        await seen_draining(client, role, 1)
        answer = await generate(client, prompt, 12)
        assert answer.tokens == oracle.predict(prompt, 12).tokens
        await set_draining(beside.state.bootstrap, lacking, draining=False, credentials=PLAIN)
        await seen_draining(client, role, 0)
    taken = (unified + 1, decode) if role == "decode" else (unified, decode + 1)
    assert await served(beside) == taken


async def test_a_client_that_leaves_frees_its_pages(beside: System) -> None:
    async with beside.client() as client:
        with contextlib.suppress(httpx.ReadError):
            async for _ in events(client, "/generate", body(SHORT, 4000, ignore_eos=True)):
                break
    await served(beside)


@pytest.mark.parametrize(
    ("killed", "prompt"),
    [pytest.param("unified-0", SHORT, id="unified"), pytest.param("decode-0", LONG, id="pair", marks=pytest.mark.long)],
)
async def test_a_stream_goes_on_on_the_other_where_its_worker_is_killed(
    tmp_path: Path, oracle: Oracle, killed: str, prompt: list[int]
) -> None:
    with running_system(tmp_path, "--engine", "mock", *UNIFIED, *SLOW) as system:
        tokens, count = [], 0
        async with system.client() as client:
            async for event in events(client, "/generate", body(prompt, 100, ignore_eos=True)):
                assert "error" not in event, event
                tokens, count = event["output_ids"], count + 1
                if count == 5:
                    system.kill(killed)
            assert await metric(client, "tandem_gateway_resumed_total") == 1
        pieces = oracle.pieces(prompt, tokens, ignore_eos=True)
        assert pieces is not None, "a token is wrong"
        assert (len(pieces), len(tokens)) == (2, 100)
        await system.wait_view(lambda view: len(view.workers) == 3)


async def test_unified_workers_serve_alone(tmp_path: Path, oracle: Oracle) -> None:
    with running_system(tmp_path, "--engine", "mock", "--ratio", "0:0", "--unified", "1") as system:
        async with system.client() as client:
            answer = await generate(client, LONG, 12)
            assert answer.tokens == oracle.predict(LONG, 12).tokens
            assert (await client.get("/ready")).status_code == 200
        assert list(await system.members()) == ["unified-0"]
