"""A whole system with the mock engine: answers, traffic, byte counters and listening sockets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from tests.support.mock.oracle import Oracle
from tests.support.system.asking import body, events, generate, generate_all
from tests.support.system.mock_oracle import PAGE_BYTES, PAGE_SIZE
from tests.support.system.sockets import Listener, listeners
from tests.support.system.system import System, is_idle, running_system, watch_status

LENGTHS = [1, 2, 15, 16, 17, 31, 63, 64, 65, 200, 300]
NEW_TOKENS = 12
ORIGINAL = {"text": "Let me tell you a lonnng story ", "sampling_params": {"temperature": 0}}


def prompts(seed: int, lengths: list[int] = LENGTHS) -> list[list[int]]:
    """Random prompts of the tiny vocabulary."""
    dice = random.Random(seed)
    return [[dice.randrange(3, 1000) for _ in range(length)] for length in lengths]


async def test_answers_are_those_of_the_oracle(pair: System, oracle: Oracle) -> None:
    asked = prompts(1)
    async with pair.client() as client:
        answers = [await generate(client, prompt, NEW_TOKENS) for prompt in asked[:6]]
        answers += await generate_all(client, asked[6:], NEW_TOKENS, at_once=8)
    for prompt, answer in zip(asked, answers, strict=True):
        wanted = oracle.predict(prompt, NEW_TOKENS)
        assert answer.tokens == wanted.tokens, f"a prompt of {len(prompt)} tokens"
        assert answer.text == wanted.text
        assert answer.meta["finish_reason"]["type"] == wanted.kind
        assert answer.meta["prompt_tokens"] == len(prompt)


async def test_every_page_moves_once_over_the_chosen_provider(pair: System, request: pytest.FixtureRequest) -> None:
    before = (await pair.wait_idle())["decode-0"]
    asked = prompts(2)
    async with pair.client() as client:
        await generate_all(client, asked, NEW_TOKENS, at_once=4)
    status = await pair.wait_idle()
    pages = sum(-(-len(prompt) // PAGE_SIZE) for prompt in asked)
    assert status["decode-0"].kv_bytes - before.kv_bytes == pages * PAGE_BYTES
    assert status["decode-0"].rooms_succeeded - before.rooms_succeeded == len(asked)
    provider = request.node.callspec.params["pair"]
    assert list(status["decode-0"].links) == [f"prefill-0={provider}"]
    assert list(status["prefill-0"].links) == [f"decode-0={provider}"]


async def test_the_request_of_the_original_demo_works_as_it_stands(pair: System) -> None:
    async with pair.client() as client:
        response = await client.post("/generate", json=ORIGINAL)
    assert response.status_code == 200
    found = response.json()
    assert found["text"]
    assert {"id", "finish_reason", "prompt_tokens", "completion_tokens", "cached_tokens"} <= found["meta_info"].keys()
    assert found["meta_info"]["e2e_latency"] > 0


async def test_a_stream_says_the_same_as_the_whole_answer(pair: System, oracle: Oracle) -> None:
    (prompt,) = prompts(3, [40])
    async with pair.client() as client:
        seen = [event async for event in events(client, "/generate", body(prompt, NEW_TOKENS))]
    assert seen[-1]["output_ids"] == oracle.predict(prompt, NEW_TOKENS).tokens
    lengths = [len(event["output_ids"]) for event in seen]
    assert lengths == sorted(lengths)
    assert len(seen) > 1


def test_the_official_client_drives_chat_and_completions(pair: System) -> None:
    with openai.OpenAI(base_url=f"{pair.url}/v1", api_key="none", max_retries=0) as client:
        (model,) = [model.id for model in client.models.list()]
        messages = [{"role": "user", "content": "What do you like to eat?"}]
        chat = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0)
        parts = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0, stream=True)
        streamed = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert chat.choices[0].message.content == streamed
        plain = client.completions.create(model=model, prompt="Once upon a time", max_tokens=8, temperature=0)
        pieces = client.completions.create(
            model=model, prompt="Once upon a time", max_tokens=8, temperature=0, stream=True
        )
        assert plain.choices[0].text == "".join(piece.choices[0].text for piece in pieces if piece.choices)
        assert plain.usage is not None
        assert plain.usage.completion_tokens <= 8


async def test_messages_are_answered_as_the_chat_that_they_are(pair: System) -> None:
    asked = {"messages": [{"role": "user", "content": "What do you like to eat?"}], "max_tokens": 8, "temperature": 0}
    async with pair.client() as client:
        chat = (await client.post("/v1/chat/completions", json=asked)).json()
        messages = (await client.post("/v1/messages", json=asked)).json()
        counted = (await client.post("/v1/messages/count_tokens", json={"messages": asked["messages"]})).json()
    assert messages["content"] == [{"type": "text", "text": chat["choices"][0]["message"]["content"]}]
    assert counted["input_tokens"] == chat["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("frequency_penalty", 0.5), ("repetition_penalty", 1.5), ("logit_bias", {"7": 1}), ("regex", "a+")],
)
async def test_what_the_mock_cannot_follow_is_refused_by_name(pair: System, name: str, value: object) -> None:
    async with pair.client() as client:
        response = await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 4, name: value})
    assert response.status_code == 501
    assert response.json()["error"]["code"] == "not_supported"
    assert f"'{name}'" in response.json()["error"]["message"]
    await pair.wait_idle()


async def test_every_listening_socket_is_expected_and_on_loopback(pair: System) -> None:
    state, members = pair.state, await pair.members()
    allowed = {Listener("bootstrap", state.bootstrap), Listener("gateway", state.admin)}
    allowed |= {Listener("gateway", state.url.removeprefix("http://"))}
    allowed |= {Listener(name, member.info.address) for name, member in members.items()}
    allowed |= {Listener(row.name, row.metrics) for row in state.processes} | {Listener("up", state.up)}
    links = {Listener("prefill-0", rank.kv_link_address) for rank in members["prefill-0"].info.ranks}
    found = set(listeners(pair))
    assert allowed | links <= found
    # What is left is the door of the prefill rank's lanes, whose port only the decode ranks are told.
    doors = found - allowed - links
    assert {door.owner for door in doors} <= {"prefill-0"}, doors
    assert len(doors) <= len(links), doors
    assert {one.host for one in found} == {"127.0.0.1"}


@pytest.fixture(scope="module")
def square(folder: Path) -> Iterator[System]:
    """Two prefill and two decode workers."""
    with running_system(folder, "--engine", "mock", "--ratio", "2:2", "--tp", "2") as system:
        yield system


async def test_two_by_two_with_two_ranks_each_serve_and_every_worker_gets_traffic(square: System) -> None:
    from tests.support.system.mock_oracle import tiny_oracle

    oracle, asked = tiny_oracle(tp_size=2), prompts(4, [20] * 12)
    async with square.client() as client:
        answers = await generate_all(client, asked, NEW_TOKENS, at_once=6)
    assert [answer.tokens for answer in answers] == [oracle.predict(prompt, NEW_TOKENS).tokens for prompt in asked]
    statuses = await square.wait_idle()
    assert sorted(statuses) == ["decode-0", "decode-1", "prefill-0", "prefill-1"]
    for name, status in statuses.items():
        assert status.submitted >= 2, f"{name} got {status.submitted} requests"
        assert is_idle(status)


async def test_a_drained_worker_gets_nothing_until_it_is_undrained(square: System) -> None:
    from tandem.cli.cluster import set_draining
    from tandem.rpc.credentials import PLAIN

    async def asked_of(drained: str) -> int:
        before = (await square.wait_idle())[drained].submitted
        async with square.client() as client:
            await generate_all(client, prompts(5, [8] * 8), 4, at_once=4)
        return (await square.wait_idle())[drained].submitted - before

    async def mark(name: str, *, draining: bool) -> None:
        await set_draining(square.state.bootstrap, name, draining=draining, credentials=PLAIN)
        await _gateway_sees(square, name, draining=draining)

    await mark("decode-1", draining=True)
    assert await asked_of("decode-1") == 0
    await _worker_heard(square, "decode-1")
    await mark("decode-0", draining=True)
    await mark("decode-1", draining=False)
    assert await asked_of("decode-1") > 0, "it may not have heard yet that it takes rooms again, and takes them"
    await mark("decode-0", draining=False)


async def _gateway_sees(system: System, name: str, *, draining: bool) -> None:
    from tandem.cli.cluster import members_of_gateway
    from tandem.rpc.credentials import PLAIN

    async def seen() -> bool:
        members = await members_of_gateway(system.state.admin, PLAIN)
        return next(bool(member.info.draining) for member in members if member.info.worker.worker_id == name)

    async with asyncio.timeout(30):
        while await seen() is not draining:  # noqa: ASYNC110 - AdminService has no stream of its view
            await asyncio.sleep(0.05)


async def _worker_heard(system: System, name: str) -> None:
    """Until a marked worker says so itself: it hears of it with a heartbeat, a moment after the gateway."""
    async with asyncio.timeout(30):
        async for status in watch_status((await system.members())[name].info):
            if status.draining:
                return


LONG_PROMPT = 560_000
"""Tokens of two bytes each: more than one message of a Session holds."""

ROOMY = {"context_tokens": 600_000, "page_size": 65_536, "layers": 1, "head_bytes": 8}


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A pair with a long context of few bytes."""
    args = [part for key, value in ROOMY.items() for part in ("--engine-arg", f"{key}={value}")]
    with running_system(
        tmp_path_factory.mktemp("roomy"), "--engine", "mock", "--engine-arg", "pages=10", *args
    ) as system:
        yield system


async def test_a_prompt_that_does_not_fit_one_message_is_answered(roomy: System, oracle: Oracle) -> None:
    wide = replace(oracle, **ROOMY)
    prompt = [128 + place * place % 800 for place in range(LONG_PROMPT)]
    async with roomy.client() as client:
        answer = await generate(client, prompt, 4)
    assert answer.tokens == wide.predict(prompt, 4).tokens
    assert answer.meta["prompt_tokens"] == LONG_PROMPT
    assert all(is_idle(status) for status in (await roomy.wait_idle()).values())
