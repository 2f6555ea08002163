"""Several answers to one prompt: one room each, told apart by their index, and none without the others."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson
import pytest

from tandem.core.errors import ErrorReason
from tandem.gateway.api.openai_answers import OpenAiAnswer
from tandem.gateway.api.openai_schema import SchemaLimits, read_completion
from tandem.gateway.calls import Api, GenerateCall, IdsPrompt, Item
from tandem.gateway.transcript import Transcript
from tandem.gateway.web.prepare import Catalog, Preparer
from tandem.rpc import convert
from tandem.v1 import session_pb2
from tests.support.gateway.doubles import Letters, NotingWorkers, finish, http_client, one_each, tokens

TWO = {"prompt": "hi", "n": 2, "max_tokens": 4}


async def rooms_of(workers: NotingWorkers, count: int) -> list[int]:
    """The rooms of a request, once all are there."""
    decode = workers.decodes[0]
    while len(decode.submits) < count:
        await decode.next_submit()
    return [submit.room for submit in decode.submits]


def failed(room: int) -> session_pb2.Delta:
    """The last delta of a room that goes wrong, and that no other attempt can save."""
    failure = convert.failure_to_proto(ErrorReason.NOT_SUPPORTED, "the engine can't do that")
    return finish(room, session_pb2.FINISH_KIND_FAILED, failure=failure)


def choices(response: httpx.Response) -> list[dict[str, Any]]:
    """The only choice of each event."""
    events = [event.removeprefix("data: ") for event in response.text.split("\n\n")]
    return [orjson.loads(event)["choices"][0] for event in events if event.startswith('{"id"')]


async def test_a_stream_brings_the_answers_as_they_come_each_with_its_index() -> None:
    workers = one_each()
    async with http_client(workers) as client, asyncio.TaskGroup() as group:
        asking = group.create_task(client.post("/v1/completions", json={**TWO, "stream": True, "echo": True}))
        first, second = await rooms_of(workers, 2)
        decode = workers.decodes[0]
        for delta in (
            tokens(first, 1, text="a"),
            tokens(second, 2, text="x"),
            tokens(first, 3, text="b"),
            finish(first),
            tokens(second, 4, text="y"),
            finish(second),
        ):
            decode.bring(delta)
    seen = choices(asking.result())
    assert [(one["index"], one["text"]) for one in seen if one["text"]] == [
        *((0, "hi"), (0, "a"), (1, "hi"), (1, "x"), (0, "b"), (1, "y"))
    ]
    assert [(one["index"], one["finish_reason"]) for one in seen if one["finish_reason"]] == [
        (0, "length"),
        (1, "length"),
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_one_that_fails_fails_the_request_and_ends_the_others(stream: bool) -> None:
    workers = one_each()
    async with http_client(workers) as client, asyncio.TaskGroup() as group:
        asking = group.create_task(client.post("/v1/completions", json={**TWO, "stream": stream}))
        first, second = await rooms_of(workers, 2)
        workers.decodes[0].bring(failed(second))
    assert asking.result().status_code == 501
    error = asking.result().json()["error"]
    assert (error["code"], error["message"]) == ("not_supported", "the engine can't do that")
    for worker in (workers.prefills[0], workers.decodes[0]):
        assert first in worker.cancelled
        assert not worker.legs


async def test_the_prompt_counts_once_and_every_answer_counts() -> None:
    preparer = Preparer(Catalog(NotingWorkers(), "x"), Letters(), default_max_tokens=8)
    items = tuple(Item(IdsPrompt((1,) * size), "prompt", session_pb2.Sampling(), n=2) for size in (3, 5))
    call = GenerateCall(Api.COMPLETION, "", items)
    transcripts = [Transcript(one) for one in await preparer.prepare(call)]
    for place, one in enumerate(transcripts):
        one.add(tokens(1, *range(place + 1)))
        one.add(finish(1, cached_tokens=2))
    usage = OpenAiAnswer(call, "m", "r", 1, transcripts, chr).document()["usage"]
    assert usage == {
        "prompt_tokens": 8,
        "completion_tokens": 1 + 2 + 3 + 4,
        "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


async def scored(prompt_scores: bool) -> dict[str, Any]:
    """The log probabilities of an echoed answer, with or without those of its prompt."""
    preparer = Preparer(Catalog(NotingWorkers(), "x"), Letters(), default_max_tokens=8)
    call = read_completion({"prompt": "hi", "echo": True, "logprobs": 1}, SchemaLimits(4, 4))
    transcripts = [Transcript(one) for one in await preparer.prepare(call)]
    if prompt_scores:
        scores = [
            session_pb2.TokenLogprob(token_id=ord("h")),
            session_pb2.TokenLogprob(
                token_id=ord("i"), logprob=-1, top=[session_pb2.TopLogprob(token_id=65, logprob=-0.5)]
            ),
        ]
        transcripts[0].add(session_pb2.Delta(prompt_logprobs=scores))
    answer = tokens(1, 33, text="!")
    answer.logprobs.append(session_pb2.TokenLogprob(token_id=33, logprob=-2))
    transcripts[0].add(answer)
    [choice] = OpenAiAnswer(call, "m", "r", 1, transcripts, chr).document()["choices"]
    assert choice["text"] == "hi!"
    found: dict[str, Any] = choice["logprobs"]
    return found


async def test_an_echoed_prompt_is_scored_too_but_for_its_first_token() -> None:
    assert await scored(prompt_scores=True) == {
        "tokens": ["h", "i", "!"],
        "token_logprobs": [None, -1, -2],
        "top_logprobs": [None, {"A": -0.5}, {}],
        "text_offset": [0, 1, 2],
    }


async def test_a_prompt_whose_scores_got_lost_is_still_echoed() -> None:
    assert await scored(prompt_scores=False) == {
        "tokens": ["!"],
        "token_logprobs": [-2],
        "top_logprobs": [{}],
        "text_offset": [2],
    }
