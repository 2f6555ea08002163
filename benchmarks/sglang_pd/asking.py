"""A client that judges any server of SGLang's /generate: whatever ends a request with an error, and says so, counts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from tests.support.faults.load import CONNECTION, Outcome
from tests.support.system.asking import body

CLIENT_LIMIT_S: Final = 60.0


class Failed(Exception):
    """The server has said that the request failed, and why."""


@dataclass(slots=True)
class Asked:
    """One request, and what became of it."""

    prompt: Sequence[int]
    wanted: Sequence[int]
    """Tokens of the right answer."""
    stream: bool = False
    tokens: list[int] = field(default_factory=list)
    outcome: Outcome = Outcome.HUNG
    reason: str = ""
    """Of an error: the status, or the code in the document."""
    seconds: float = 0.0
    """From sending it to its end."""


async def ask(
    client: httpx.AsyncClient, one: Asked, limit_s: float = CLIENT_LIMIT_S, changed: Callable[[], None] = lambda: None
) -> Asked:
    """Asks, and judges. What has not ended within the limit is given up, and stays HUNG. changed: at each event."""
    begun = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            await (_streamed if one.stream else _whole)(client, one, changed)
        one.outcome = Outcome.ANSWERED if len(one.tokens) == len(one.wanted) else Outcome.WRONG
    except Failed as failed:
        one.outcome, one.reason = Outcome.ERROR, str(failed)
    except httpx.TransportError:
        one.outcome, one.reason = Outcome.ERROR, CONNECTION
    except TimeoutError:
        one.outcome = Outcome.HUNG
    if one.tokens != list(one.wanted[: len(one.tokens)]):
        one.outcome = Outcome.WRONG
    one.seconds = time.monotonic() - begun
    changed()
    return one


async def _whole(client: httpx.AsyncClient, one: Asked, _: Callable[[], None]) -> None:
    response = await client.post("/generate", json=body(one.prompt, len(one.wanted), ignore_eos=True))
    if response.status_code != 200:
        raise Failed(str(response.status_code))
    _take(one, response.json())


async def _streamed(client: httpx.AsyncClient, one: Asked, changed: Callable[[], None]) -> None:
    asked = {**body(one.prompt, len(one.wanted), ignore_eos=True), "stream": True}
    async with client.stream("POST", "/generate", json=asked) as response:
        if response.status_code != 200:
            raise Failed(str(response.status_code))
        async for line in response.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                _take(one, json.loads(line[6:]))
                changed()


def _take(one: Asked, said: dict[str, Any]) -> None:
    """Takes an answer or an event. Raises Failed if it is an error, or says that the request was aborted."""
    if error := said.get("error"):
        raise Failed(str(error.get("code", "error")) if isinstance(error, dict) else "error")
    reason = said.get("meta_info", {}).get("finish_reason")
    if isinstance(reason, dict) and reason.get("type") == "abort":
        raise Failed(f"abort {reason.get('status_code') or ''}".strip())
    one.tokens = said["output_ids"]
