"""The requests that are in flight when a fault strikes, and what became of each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import pairwise
from typing import Final

import httpx

from tests.support.mock.oracle import Oracle
from tests.support.system.asking import Refused, body, events

PROMPT_TOKENS: Final = 128
CONNECTION: Final = "connection"
"""Why a request failed whose connection to the gateway broke, or could not be opened."""


class Outcome(Enum):
    """What became of a request."""

    ANSWERED = "answered"
    """As it has to be, token for token."""
    ERROR = "error"
    """With a reason, and nothing before it was wrong."""
    WRONG = "wrong"
    """Another token, or an end that comes too soon and without an error."""
    HUNG = "hung"


@dataclass(slots=True)
class Request:
    """One request of /generate."""

    prompt: list[int]
    new_tokens: int
    rooms_of: Callable[[list[int]], list[int] | None]
    """How tokens of an answer came about: those of each room in which it went on. None if one is wrong."""
    stream: bool
    tokens: list[int] = field(default_factory=list)
    """What has come of it."""
    outcome: Outcome | None = None
    reason: str = ""
    """Of an ERROR: `code` of the error that the client got."""
    rooms: int = 0
    """Rooms that it took, as far as the tokens tell: more than one if it went on on other workers."""
    said: list[float] = field(default_factory=list)
    """When a stream has said something, in monotonic seconds."""
    ended: float = 0.0
    """Monotonic seconds."""

    def silence_s(self, since: float) -> float:
        """The longest time without a word since a moment, in seconds; 0 if it does not stream."""
        told = [since, *(at for at in self.said if at > since)]
        return max((later - sooner for sooner, later in pairwise(told)), default=0.0)


Draw = Callable[[int, bool], Request]
"""Makes a request: tokens of its answer, and whether it streams."""


def draw(
    dice: random.Random, oracle: Oracle, new_tokens: int, *, stream: bool, prompt_tokens: int = PROMPT_TOKENS
) -> Request:
    """A request of the mock engine. Its prompt is its own: no page of an earlier one can pass for a page of it."""
    prompt = [dice.randrange(3, 1000) for _ in range(prompt_tokens)]
    return Request(prompt, new_tokens, partial(oracle.pieces, prompt, ignore_eos=True), stream)


async def ask(client: httpx.AsyncClient, request: Request, changed: Callable[[], None] = lambda: None) -> None:
    """Asks, and judges what comes back. Cancelling it leaves the request as HUNG. changed: called at each event."""
    request.outcome = Outcome.HUNG
    try:
        await (_streamed if request.stream else _whole)(client, request, changed)
    except Refused as refused:
        request.outcome, request.reason = Outcome.ERROR, refused.code
    except httpx.TransportError:
        request.outcome, request.reason = Outcome.ERROR, CONNECTION
    else:
        request.outcome = Outcome.ANSWERED if len(request.tokens) == request.new_tokens else Outcome.WRONG
    request.ended = time.monotonic()
    rooms = request.rooms_of(request.tokens)
    if rooms is None:
        request.outcome = Outcome.WRONG
    else:
        request.rooms = len(rooms)
    changed()


async def _streamed(client: httpx.AsyncClient, request: Request, changed: Callable[[], None]) -> None:
    asked = body(request.prompt, request.new_tokens, ignore_eos=True)
    async for event in events(client, "/generate", asked):
        if "error" in event:
            raise Refused(event["error"]["code"], str(event))
        request.tokens = event["output_ids"]
        request.said.append(event["at"])
        changed()


async def _whole(client: httpx.AsyncClient, request: Request, _: Callable[[], None]) -> None:
    response = await client.post("/generate", json=body(request.prompt, request.new_tokens, ignore_eos=True))
    if response.status_code != 200:
        raise Refused.by(response)
    request.tokens = response.json()["output_ids"]
