"""/v1/messages: Anthropic's requests, answers, events and errors."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.admission.keys import KeyRing
from tandem.gateway.api.messages_schema import read_message_call
from tandem.gateway.calls import ChatPrompt, Message
from tandem.gateway.text.tools import ToolCall
from tandem.rpc import convert
from tandem.v1 import session_pb2
from tests.support.gateway.doubles import AppLimits, NotingWorkers, finish, http_client, one_each, tokens
from tests.support.gateway.plain_parsers import PlainParsers

PATH = "/v1/messages"
HELLO = [{"role": "user", "content": "hi"}]
ASKED = {"model": "tiny", "max_tokens": 4, "messages": HELLO}
STOP = session_pb2.FINISH_KIND_STOP


async def answered(body: dict[str, Any], *deltas: session_pb2.Delta, limits: AppLimits | None = None) -> httpx.Response:
    """The response where decode brings these deltas, of whatever room."""
    workers = one_each()
    async with http_client(workers, limits) as client, asyncio.TaskGroup() as group:
        asking = group.create_task(client.post(PATH, json=body))
        room = (await workers.decodes[0].next_submit()).room
        for delta in deltas:
            delta.room = room
            workers.decodes[0].bring(delta)
    return asking.result()


@pytest.mark.parametrize(
    ("last", "reason", "matched"),
    [
        (finish(0), "max_tokens", None),
        (finish(0, STOP), "end_turn", None),
        (finish(0, STOP, matched_token_id=2), "end_turn", None),
        (finish(0, STOP, matched_text="END"), "stop_sequence", "END"),
    ],
)
async def test_a_whole_answer(last: session_pb2.Delta, reason: str, matched: str | None) -> None:
    last.finish.cached_tokens = 3
    response = await answered(
        {**ASKED, "stop_sequences": ["END"]}, tokens(0, 1, text="he"), tokens(0, 2, text="y"), last
    )
    assert response.json() == {
        "id": f"msg_{response.headers['x-request-id']}",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": "hey"}],
        "stop_reason": reason,
        "stop_sequence": matched,
        "usage": {
            "input_tokens": len("user:hi;") - 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": 2,
        },
    }


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The documents of a stream, whose events have the right names."""
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    documents = []
    for event in events:
        name, data = event.split("\n")
        documents.append(orjson.loads(data.removeprefix("data: ")))
        assert name == f"event: {documents[-1]['type']}"
    return documents


async def test_a_stream_of_named_events() -> None:
    response = await answered({**ASKED, "stream": True}, tokens(0, 1, text="he"), tokens(0, 2), finish(0, STOP))
    start, block, text, block_end, end, last = events_of(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (start["type"], start["message"]["content"]) == ("message_start", [])
    assert start["message"]["stop_reason"] is None
    assert start["message"]["usage"]["input_tokens"] == len("user:hi;")
    assert block == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert text == {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "he"}}
    assert block_end == {"type": "content_block_stop", "index": 0}
    assert end["type"] == "message_delta"
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert end["usage"]["output_tokens"] == 2
    assert last == {"type": "message_stop"}


async def test_a_stream_that_breaks_off_ends_with_an_error_of_that_shape() -> None:
    failure = convert.failure_to_proto(ErrorReason.NOT_SUPPORTED, "no more")
    failed = finish(0, session_pb2.FINISH_KIND_FAILED, failure=failure)
    response = await answered({**ASKED, "stream": True}, tokens(0, 1, text="he"), failed)
    *_, last = events_of(response)
    assert last == {
        "type": "error",
        "error": {"type": "api_error", "message": "no more", "param": None, "code": "not_supported"},
    }


def test_a_request_is_the_chat_that_it_means() -> None:
    parts = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]
    call = read_message_call(
        {
            **ASKED,
            "system": parts,
            "messages": [*HELLO, {"role": "assistant", "content": "I"}],
            "stop_sequences": ["x", "y"],
            "temperature": 0.5,
            "top_k": 3,
            "metadata": {"user_id": "me"},
            "thinking": {"type": "disabled"},
        }
    )
    [item] = call.items
    messages = (Message("system", "ab"), Message("user", "hi"), Message("assistant", "I"))
    assert item.prompt == ChatPrompt(messages, continue_last=True)
    assert (list(item.sampling.stop), item.sampling.max_new_tokens, item.sampling.top_k) == (["x", "y"], 4, 3)
    assert item.sampling.temperature == 0.5


async def test_tokens_are_counted_as_they_would_be_sent() -> None:
    async with http_client(NotingWorkers()) as client:
        body = {"model": "tiny", "messages": HELLO, "system": "be kind"}
        response = await client.post(f"{PATH}/count_tokens", json=body)
    assert response.json() == {"input_tokens": len("system:be kind;user:hi;")}


def test_calls_and_results_are_messages_of_the_chat() -> None:
    body = {
        **ASKED,
        "tools": [{"name": "cook", "description": "d", "input_schema": {"type": "object"}}, {"name": "eat"}],
        "tool_choice": {"type": "tool", "name": "cook", "disable_parallel_tool_use": True},
        "messages": [
            *HELLO,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "Well"},
                    {"type": "tool_use", "id": "1", "name": "cook", "input": {"a": 1}},
                    {"type": "tool_use", "id": "2", "name": "eat", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "done"}]},
                    {"type": "tool_result", "id": "2"},
                    {"type": "text", "text": "and?"},
                ],
            },
        ],
    }
    call = read_message_call(body, PlainParsers())
    [item] = call.items
    assert isinstance(item.prompt, ChatPrompt)
    assert item.prompt.messages == (
        Message("user", "hi"),
        Message("assistant", "Well", (ToolCall("1", "cook", '{"a":1}'), ToolCall("2", "eat", "{}")), reasoning="hm"),
        Message("tool", "done", call_id="1"),
        Message("tool", "", call_id="2"),
        Message("user", "and?"),
    )
    assert [tool.name for tool in item.prompt.tools] == ["cook"]
    assert item.sampling.json_schema == '["cook"]'
    assert call.hearing is not None
    assert call.hearing.tools is not None
    assert not call.hearing.tools.parallel
    with pytest.raises(TandemError, match="TANDEM_GATEWAY_TOOL_CALL_PARSER"):
        read_message_call(body)


async def test_calls_are_blocks_whole_and_streamed() -> None:
    body = {**ASKED, "tools": [{"name": "cook"}]}
    said = [tokens(0, 1, text="<think>so</think>Well <call cook "), tokens(0, 2, text='{"a":1}><call cook {}>')]
    stop = finish(0, STOP)
    limits = AppLimits(parsers=PlainParsers(reasoning_parser="plain"))
    whole = (await answered(body, *said, stop, limits=limits)).json()
    events = events_of(await answered({**body, "stream": True}, *said, stop, limits=limits))
    assert whole["stop_reason"] == "tool_use"
    assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block["input"] for block in whole["content"][2:]] == [{"a": 1}, {}]
    built: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(built)
            built.append({**event["content_block"], "json": ""})
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], built[event["index"]]
            if delta["type"] == "input_json_delta":
                block["json"] += delta["partial_json"]
            else:
                block[block["type"]] += delta[block["type"]]
    for block in built:
        if text := block.pop("json"):
            block["input"] = orjson.loads(text)
    assert built == whole["content"]
    starts = [event["index"] for event in events if event["type"] == "content_block_start"]
    assert starts == [event["index"] for event in events if event["type"] == "content_block_stop"]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_what_the_system_says_among_messages_comes_first() -> None:
    among = {"role": "system", "content": [{"type": "text", "text": "In French."}]}
    said = [{"role": "user", "content": "a"}, among, {"role": "assistant", "content": "b"}]
    for system, wanted in (({}, "In French."), ({"system": "Be kind."}, "Be kind.\nIn French.")):
        prompt = read_message_call({**ASKED, **system, "messages": said}).items[0].prompt
        assert isinstance(prompt, ChatPrompt)
        assert prompt.messages == (Message("system", wanted), Message("user", "a"), Message("assistant", "b"))
        assert prompt.continue_last


REFUSED = [
    ({"model": "tiny", "messages": HELLO}, "max_tokens", "is missing"),
    ({**ASKED, "max_tokens": 0}, "max_tokens", "whole number of 1.."),
    ({**ASKED, "messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "one of user, assistant, system"),
    ({**ASKED, "messages": [{"role": "system", "content": "a"}]}, "messages", "a message of the user"),
    ({**ASKED, "messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]", "'image'"),
    ({**ASKED, "system": 7}, "system", "a text or a list of text parts"),
    ({**ASKED, "tools": [{"name": "look", "type": "web_search_20250305"}]}, "tools[0].type", "must be 'custom'"),
    ({**ASKED, "tools": [{"name": "look"}], "tool_choice": {"type": "some"}}, "tool_choice.type", "auto, any, tool"),
    ({**ASKED, "tool_choice": {"type": "any"}}, "tool_choice", "there are no 'tools'"),
    ({**ASKED, "thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking", "not supported"),
    ({**ASKED, "stop": ["x"]}, "stop", "Did you mean"),
    ({**ASKED, "stop_sequences": [""]}, "stop_sequences", "each of 1..1024 characters"),
    ({**ASKED, "max_tokens": 100}, "messages", "Ask for at most"),
]


@pytest.mark.parametrize(("body", "field", "says"), REFUSED)
async def test_bad_input_is_refused_by_name_in_anthropics_shape(body: dict[str, Any], field: str, says: str) -> None:
    workers = one_each()
    async with http_client(workers) as client:
        response = await client.post(PATH, json=body)
    assert response.status_code == 400
    document = response.json()
    assert document["type"] == "error"
    assert (document["error"]["type"], document["error"]["param"]) == ("invalid_request_error", field)
    assert says in document["error"]["message"]
    assert not workers.decodes[0].submits


async def test_every_error_of_its_paths_has_that_shape_and_no_other_has() -> None:
    async with http_client(one_each(), AppLimits(keys=KeyRing(("right",)))) as client:
        right = {"x-api-key": "right"}
        found = {
            "authentication_error": await client.post(PATH, json=ASKED, headers={"x-api-key": "wrong"}),
            "not_found_error": await client.post(PATH, json={**ASKED, "model": "huge"}, headers=right),
            "request_too_large": await client.post(PATH, json={"messages": "x" * 5000}, headers=right),
            "invalid_request_error": await client.get(PATH, headers=right),
        }
        count = await client.post(f"{PATH}/count_tokens", json={}, headers=right)
        other = await client.post("/v1/completions", json={}, headers=right)
    assert [response.status_code for response in found.values()] == [401, 404, 413, 405]
    for kind, response in found.items():
        assert (response.json()["type"], response.json()["error"]["type"]) == ("error", kind)
    assert count.json()["type"] == "error"
    assert "type" not in other.json()


async def test_no_key_at_all_is_refused() -> None:
    async with http_client(one_each(), AppLimits(keys=KeyRing(("right",)))) as client:
        for headers in ({}, {"x-api-key": ""}, {"authorization": "Bearer "}, {"authorization": "Basic right"}):
            assert (await client.post(PATH, json=ASKED, headers=headers)).status_code == 401
