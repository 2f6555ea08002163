"""The default profile: SGLang on the CPU with the tiny model, asked in every way, and scaled while clients ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.support.docker.cluster import Cluster
from tests.support.docker.stack import Stack, running
from tests.support.docker.traced import check_trace
from tests.support.docker.wheels import torch_wheel
from tests.support.system.asking import generate, prompt_of, streamed

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(2400)]

NEW_TOKENS = 16
GREEDY: dict[str, Any] = {"model": "tandem-tiny", "max_tokens": NEW_TOKENS, "temperature": 0}
PROMPTS = [prompt_of(length, length) for length in (5, 17, 40, 90)]


@pytest.fixture(scope="module")
def stack(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """What `docker compose up` starts."""
    stack = Stack("sglang-cpu", WHEELS_DIR=str(torch_wheel(tmp_path_factory.mktemp("wheels"))))
    stack.build()
    with running(stack):
        yield stack


@pytest.fixture(scope="module")
def cluster(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Its services."""
    return Cluster.of(stack, tmp_path_factory.mktemp("certs"))


async def test_openais_client_chats_streams_and_completes(stack: Stack) -> None:
    asked = {**GREEDY, "messages": [{"role": "user", "content": "What do you like to eat?"}]}
    http = httpx.AsyncClient(trust_env=False, timeout=120)
    async with openai.AsyncOpenAI(base_url=f"{stack.gateways()[0]}/v1", api_key="none", http_client=http) as client:
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        text = "".join([event.choices[0].delta.content or "" async for event in stream])
        assert text == whole.choices[0].message.content != ""
        assert (await client.completions.create(**GREEDY, prompt="Once upon a time")).choices[0].text


async def test_generate_answers_whole_and_as_a_stream(stack: Stack) -> None:
    async with stack.client() as client:
        for prompt in PROMPTS:
            whole = await generate(client, prompt, NEW_TOKENS, ignore_eos=True)
            parts = await streamed(client, prompt, NEW_TOKENS, ignore_eos=True)
            assert len(whole.tokens) == NEW_TOKENS
            assert parts.tokens == whole.tokens


async def test_the_trace_of_a_request_is_whole(stack: Stack, cluster: Cluster) -> None:
    async with stack.client() as client:
        await check_trace(cluster, client, prompt_of(100, seed=7), NEW_TOKENS)


@asynccontextmanager
async def asking(stack: Stack) -> AsyncIterator[list[int]]:
    """Two clients ask until the body has ended; the list grows by the tokens of each answer. One that fails, fails."""
    counts: list[int] = []
    going = True

    async def one(client: httpx.AsyncClient, first: int) -> None:
        place = first
        while going:
            answer = await generate(client, PROMPTS[place % len(PROMPTS)], NEW_TOKENS, ignore_eos=True)
            counts.append(len(answer.tokens))
            place += 1

    async with stack.client() as client, asyncio.TaskGroup() as group:
        for number in range(2):
            group.create_task(one(client, number))
        try:
            yield counts
        finally:
            going = False


async def test_workers_come_and_go_under_load(stack: Stack, cluster: Cluster) -> None:
    async with asking(stack) as counts:
        await asyncio.to_thread(stack.up, prefill=2, decode=2)
        members = await cluster.members(4)
        await asyncio.to_thread(stack.up)
        await cluster.members(2)
    assert len(members) == 4
    assert len(counts) > 4
    assert set(counts) == {NEW_TOKENS}
