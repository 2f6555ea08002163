"""What tests ask a gateway, and how they read its answers."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx


class Refused(AssertionError):
    """The gateway answered with an error."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        """The reason, as clients see it."""

    @classmethod
    def by(cls, response: httpx.Response) -> Refused:
        """What a response that is not 200 says; its body has been read."""
        return cls(response.json()["error"]["code"], response.text)


@dataclass(frozen=True)
class Answer:
    """An answer of /generate."""

    tokens: list[int]
    text: str
    meta: dict[str, Any]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """A random prompt of the tiny vocabulary."""
    dice = random.Random(seed)
    return [dice.randrange(3, 1000) for _ in range(length)]


def body(input_ids: Sequence[int], new_tokens: int, **sampling: Any) -> dict[str, Any]:
    """A greedy request of /generate."""
    params = {"temperature": 0, "max_new_tokens": new_tokens, **sampling}
    return {"input_ids": list(input_ids), "sampling_params": params}


async def generate(client: httpx.AsyncClient, input_ids: Sequence[int], new_tokens: int, **sampling: Any) -> Answer:
    """One prompt, answered as a whole. Fails on anything but 200."""
    response = await client.post("/generate", json=body(input_ids, new_tokens, **sampling))
    assert response.status_code == 200, response.text
    found = response.json()
    return Answer(found["output_ids"], found["text"], found["meta_info"])


async def streamed(
    client: httpx.AsyncClient,
    input_ids: Sequence[int],
    new_tokens: int,
    *,
    alone: asyncio.Event | None = None,
    **sampling: Any,
) -> Answer:
    """The same as a stream, whose every event continues the one before. Fails on an error event.

    alone: set if the first token came by itself.
    """
    found = Answer([], "", {})
    async for event in events(client, "/generate", body(input_ids, new_tokens, **sampling)):
        assert "error" not in event, event
        now = Answer(event["output_ids"], event["text"], event["meta_info"])
        assert now.tokens[: len(found.tokens)] == found.tokens
        assert now.text.startswith(found.text)
        if alone is not None and not found.tokens and len(now.tokens) == 1:
            alone.set()
        found = now
    return found


async def generate_all(
    client: httpx.AsyncClient,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    at_once: int,
    stream: bool = False,
    **sampling: Any,
) -> list[Answer]:
    """Many prompts, some at once."""
    turn = asyncio.Semaphore(at_once)
    ask = streamed if stream else generate

    async def one(prompt: Sequence[int]) -> Answer:
        async with turn:
            return await ask(client, prompt, new_tokens, **sampling)

    return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))


async def last_event(client: httpx.AsyncClient, request: dict[str, Any], begun: asyncio.Event) -> dict[str, Any]:
    """The last event of a streamed /generate. Says when decode has spoken: the first event is prefill's to bring."""
    last: dict[str, Any] = {}
    async for event in events(client, "/generate", request):
        if last:
            begun.set()
        last = event
    return last


async def events(client: httpx.AsyncClient, path: str, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The events of a streamed answer, each with the time `at` which it came; "[DONE]" ends them. Raises Refused."""
    async with client.stream("POST", path, json={**request, "stream": True}) as response:
        if response.status_code != 200:
            await response.aread()
            raise Refused.by(response)
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                yield {**json.loads(line[6:]), "at": time.monotonic()}


async def metric(client: httpx.AsyncClient, name: str) -> float:
    """A metric of the gateway, by its name and labels; 0 if it is not there yet."""
    lines = (await client.get("/metrics")).text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


async def seen_draining(client: httpx.AsyncClient, role: str, workers: int) -> None:
    """Waits until the gateway sees so many workers of a role drain. Metrics are pulled: there is no event."""
    name = f'tandem_gateway_workers{{role="{role}",state="draining"}}'
    async with asyncio.timeout(20):
        while True:
            if await metric(client, name) == workers:
                return
            await asyncio.sleep(0.02)
