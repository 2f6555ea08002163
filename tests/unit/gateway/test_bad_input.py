"""Every kind of bad input gets a 4xx in OpenAI's shape, with a message that says what to do."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest

from tandem.gateway.admission.keys import KeyRing
from tests.support.gateway.doubles import AppLimits, NotingWorkers, finish, http_client, one_each

CHAT, TEXT, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
HELLO = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True, slots=True)
class Bad:
    """A request and what must come back."""

    name: str
    path: str
    body: Any
    says: str
    """Part of the message."""
    param: str | None = None
    status: int = 400
    method: str = "POST"


def chat(name: str, says: str, param: str, status: int = 400, **fields: Any) -> Bad:
    """A chat with one bad field."""
    return Bad(name, CHAT, {"model": "tiny", "messages": HELLO, **fields}, says, param, status)


def text(name: str, says: str, param: str, **fields: Any) -> Bad:
    """A completion with one bad field."""
    return Bad(name, TEXT, {"model": "tiny", "prompt": "hello", **fields}, says, param)


def generate(name: str, says: str, param: str, **fields: Any) -> Bad:
    """A /generate request with one bad field."""
    return Bad(name, GENERATE, fields, says, param)


TOO_LONG = "x" * 200
TOOL = {"type": "function", "function": {"name": "cook"}}
NAMED = {"type": "function", "function": {"name": "clean"}}
CASES = [
    Bad("wrong json", CHAT, b"{'a': 1", "not valid JSON"),
    Bad("json but no object", CHAT, [1], "one JSON object, not a list"),
    Bad("empty body", CHAT, b"", "Send one JSON object"),
    Bad("giant body", CHAT, {"messages": "x" * 5000}, "at", None, 413),
    Bad("unknown endpoint", "/v1/chats", {}, "There are: POST /v1/chat/completions", None, 404),
    Bad("slash at the end", CHAT + "/", {"messages": HELLO}, "There is no /v1/chat/completions/", None, 404),
    Bad("wrong method", CHAT, None, "Use POST", None, 405, "GET"),
    Bad("unknown model", CHAT, {"model": "huge", "messages": HELLO}, "There is: tiny", "model", 404),
    chat("model of a wrong type", "string of 1..1024 characters", "model", model=7),
    chat("negative temperature", "a number of 0..2, not -1", "temperature", temperature=-1),
    chat("temperature as text", "a number of 0..2, not 'hot'", "temperature", temperature="hot"),
    chat("top_p zero", "above 0 and at most 1", "top_p", top_p=0),
    text("top_k zero", "-1 (off) or a whole number", "top_k", top_k=0),
    text("min_p too large", "of 0..1", "min_p", min_p=1.5),
    chat("penalty out of range", "of -2..2", "presence_penalty", presence_penalty=3),
    chat("n too large", "a whole number of 1..4, not 5", "n", n=5),
    chat("n zero", "a whole number of 1..4, not 0", "n", n=0),
    chat("n as a boolean", "a whole number of 1..4, not True", "n", n=True),
    chat("no messages", "list of 1..4096 messages", "messages", messages=[]),
    chat("a bad role", "one of system, developer, user, assistant", "messages[0].role", messages=[{"role": "boss"}]),
    chat("no content", "a text or a list of text parts", "messages[0].content", messages=[{"role": "user"}]),
    chat(
        "an image",
        "the type 'image_url' is not taken",
        "messages[0].content[0]",
        messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    ),
    chat("max_tokens zero", "whole number of 1..", "max_tokens", max_tokens=0),
    chat("a long chat", "takes 100", "messages", messages=[{"role": "user", "content": TOO_LONG}]),
    chat("top_logprobs alone", "only with 'logprobs': true", "top_logprobs", top_logprobs=2),
    chat("too many top_logprobs", "whole number of 0..128", "top_logprobs", logprobs=True, top_logprobs=129),
    chat("stream options without stream", "only with 'stream': true", "stream_options", stream_options={}),
    chat("stream as text", "true or false", "stream", stream="yes"),
    chat("too many stops", "at most 16 strings", "stop", stop=["x"] * 17),
    chat("an empty stop", "each of 1..1024 characters", "stop", stop=""),
    chat("seed too large", "whole number of 0..", "seed", seed=2**63),
    chat("a typo", "Did you mean 'max_tokens'?", "max_token", max_token=7),
    chat("tools", "'tools[0].function' must be an object", "tools[0].function", tools=[{"type": "function"}]),
    chat("no parser", "TANDEM_GATEWAY_TOOL_CALL_PARSER", "tools", 501, tools=[TOOL]),
    chat("type of tool", "no other type of tool", "tools[0]", tools=[{"type": "web_search"}]),
    chat("choice", "must be 'none', 'auto', 'required' or", "tool_choice", tools=[TOOL], tool_choice="any"),
    chat("choice of nothing", "there are no 'tools'", "tool_choice", tool_choice="required"),
    chat("choice of another", "not among 'tools'", "tool_choice", tools=[TOOL], tool_choice=NAMED),
    chat("effort", "must be one of none, minimal", "reasoning_effort", reasoning_effort="some"),
    chat(
        "arguments",
        "must be a JSON object, given as text",
        "messages[0].tool_calls[0].function.arguments",
        messages=[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}],
    ),
    chat(
        "response format",
        "'text', 'json_object' or 'json_schema'",
        "response_format.type",
        response_format={"type": "x"},
    ),
    chat(
        "template reserved",
        "a template variable",
        "chat_template_kwargs.tokenize",
        chat_template_kwargs={"tokenize": True},
    ),
    text("empty prompt", "Give at least one character", "prompt", prompt=""),
    text("empty list of prompts", "Give at least one prompt", "prompt", prompt=[]),
    text("no prompt", "is missing", "prompt", prompt=None),
    text("prompt of a wrong type", "a text or a list, not an object", "prompt", prompt={"a": 1}),
    text("mixed token ids", "whole numbers", "prompt", prompt=[1, "a"]),
    text("token outside the vocabulary", "0..999", "prompt", prompt=[1, 1000]),
    text("too many prompts", "1..4 are allowed", "prompt", prompt=["a"] * 5),
    text("a long prompt", "has 200 tokens; the model's context takes 100", "prompt", prompt=TOO_LONG),
    text("too much asked for", "at most 95 new tokens", "prompt", max_tokens=96),
    text("suffix", "not supported here", "suffix", suffix="end"),
    text("echo as text", "true or false", "echo", echo="yes"),
    text("echo of a scored stream", "answered whole only", "echo", echo=True, logprobs=1, stream=True),
    text("best_of", "must be as 'n', which is 1", "best_of", best_of=3),
    text("best_of too large", "whole number of 1..4", "best_of", best_of=5),
    chat("echo of a chat", "Only /v1/completions has it", "echo", echo=True),
    chat("best_of of a chat", "Only /v1/completions has it", "best_of", best_of=2),
    chat("suffix of a chat", "into 'messages'", "suffix", suffix="end"),
    text("logit_bias as list", "must be an object", "logit_bias", logit_bias=[5]),
    text("logit_bias of a word", "must have a token id of 0..", "logit_bias.the", logit_bias={"the": 1}),
    text("logit_bias too strong", "a number of -100..100, not 101", "logit_bias.5", logit_bias={"5": 101}),
    text("logit_bias of an unknown token", "0..999", "logit_bias", logit_bias={"1000": 1}),
    generate(
        "nested logit_bias",
        "of -100..100",
        "sampling_params.logit_bias.7",
        text="a",
        sampling_params={"logit_bias": {"7": "much"}},
    ),
    generate("neither text nor ids", "must be given", "text", sampling_params={}),
    generate("text and ids", "not both", "text", text="a", input_ids=[1]),
    generate("empty text", "Give at least one character", "text", text=""),
    generate("text of a wrong type", "not a number", "text", text=5),
    generate(
        "sampling_params as list", "2 values for 1 prompts", "sampling_params", text="a", sampling_params=[{}, {}]
    ),
    generate("sampling_params as text", "must be an object", "sampling_params", text="a", sampling_params="greedy"),
    generate(
        "bad nested value",
        "of 0..2, not -0.5",
        "sampling_params.temperature",
        text="a",
        sampling_params={"temperature": -0.5},
    ),
    generate(
        "bad nested value of a batch",
        "of 0..2",
        "sampling_params[1].temperature",
        text=["a", "b"],
        sampling_params=[{}, {"temperature": 9}],
    ),
    generate(
        "nested typo",
        "Did you mean 'sampling_params.max_new_tokens'?",
        "sampling_params.max_new_token",
        text="a",
        sampling_params={"max_new_token": 3},
    ),
    generate("bootstrap_room", "the gateway's own affair", "bootstrap_room", text="a", bootstrap_room=1),
    generate("image_data", "text and token ids only", "image_data", text="a", image_data="x"),
    generate(
        "two grammars",
        "one grammar only",
        "sampling_params.regex",
        text="a",
        sampling_params={"regex": "a", "ebnf": "b"},
    ),
]


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
async def test_bad_input_is_refused_by_name(bad: Bad) -> None:
    workers = one_each()
    content = bad.body if isinstance(bad.body, bytes) else None if bad.body is None else json.dumps(bad.body)
    async with http_client(workers) as client:
        response = await client.request(bad.method, bad.path, content=content)
    assert response.status_code == bad.status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert bad.says in error["message"]
    assert error["param"] == bad.param
    assert bad.param is None or bad.param in error["message"]
    assert response.headers["x-request-id"]
    assert not workers.prefills[0].submits
    assert not workers.decodes[0].submits


def test_there_are_at_least_25_kinds() -> None:
    assert len({bad.name for bad in CASES}) == len(CASES) >= 25


async def test_no_worker_is_told_with_retry_after() -> None:
    async with http_client(NotingWorkers()) as client:
        response = await client.post(TEXT, json={"prompt": "hello"})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "no_worker"


async def test_more_answers_than_places_are_refused_for_good() -> None:
    async with http_client(one_each(), AppLimits(max_concurrent=1)) as client:
        response = await client.post(TEXT, json={"prompt": ["a", "b"]})
    assert response.status_code == 400
    assert "2 answers at once; at most 1" in response.json()["error"]["message"]


async def test_overload_is_told_with_retry_after() -> None:
    workers = one_each()
    async with http_client(workers, AppLimits(max_concurrent=1)) as client, asyncio.TaskGroup() as group:
        first = group.create_task(client.post(TEXT, json={"prompt": "a"}))
        room = (await workers.decodes[0].next_submit()).room
        second = await client.post(TEXT, json={"prompt": "a"})
        workers.decodes[0].bring(finish(room))
    assert first.result().status_code == 200
    assert second.status_code == 429
    assert second.headers["retry-after"] == "1"
    assert second.json()["error"]["type"] == "rate_limit_error"


async def test_a_key_is_needed_where_keys_are_set() -> None:
    async with http_client(NotingWorkers(), AppLimits(keys=KeyRing(("right",)))) as client:
        without = await client.get("/v1/models")
        wrong = await client.get("/v1/models", headers={"Authorization": "Bearer wrong"})
        right = await client.get("/v1/models", headers={"Authorization": "Bearer right"})
        health = await client.get("/health")
    assert [without.status_code, wrong.status_code] == [401, 401]
    assert without.json()["error"]["type"] == "authentication_error"
    assert [right.status_code, health.status_code] == [200, 200]
