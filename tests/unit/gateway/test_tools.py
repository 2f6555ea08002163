"""Tools in chats, with a model whose way of calling them is simple: what it is told, and what comes back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.api.openai_schema import SchemaLimits, read_chat
from tandem.gateway.calls import ChatPrompt
from tandem.gateway.settings import GatewaySettings
from tandem.gateway.text.parsers import load_parsers
from tandem.v1 import session_pb2
from tests.support.gateway.cluster import encoder
from tests.support.gateway.doubles import AppLimits, NotingWorkers, finish, http_client, one_each, tokens
from tests.support.gateway.plain_parsers import PlainParsers

LIMITS = SchemaLimits(max_n=4, max_batch=4)
HELLO = [{"role": "user", "content": "hi"}]


def tool(name: str) -> dict[str, Any]:
    """A tool with nothing but its name."""
    return {"type": "function", "function": {"name": name}}


def named(name: str) -> dict[str, Any]:
    """The choice of one tool."""
    return {"type": "function", "function": {"name": name}}


def read(**fields: Any) -> tuple[ChatPrompt, session_pb2.Sampling]:
    """What becomes of a chat."""
    [item] = read_chat({"messages": HELLO, **fields}, LIMITS, PlainParsers(reasoning_parser="plain")).items
    assert isinstance(item.prompt, ChatPrompt)
    return item.prompt, item.sampling


@pytest.mark.parametrize(
    ("choice", "shown", "schema"),
    [
        (None, ["cook", "eat"], ""),
        ("auto", ["cook", "eat"], ""),
        ("required", ["cook", "eat"], '["cook","eat"]'),
        (named("eat"), ["eat"], '["eat"]'),
        ("none", [], ""),
    ],
)
def test_a_choice_decides_what_the_model_is_told_and_held_to(choice: Any, shown: list[str], schema: str) -> None:
    prompt, sampling = read(tools=[tool("cook"), tool("eat")], tool_choice=choice)
    assert [one.name for one in prompt.tools] == shown
    assert sampling.json_schema == schema
    assert sampling.reasoning_first == bool(schema), "a grammar leaves reasoning free"
    assert sampling.skip_special_tokens == (not shown)


def test_a_forced_call_does_not_go_with_another_grammar() -> None:
    with pytest.raises(TandemError, match="can't be combined with 'response_format'") as caught:
        read(tools=[tool("cook")], tool_choice="required", response_format={"type": "json_object"})
    assert caught.value.field == "tool_choice"
    _, sampling = read(tools=[tool("cook")], response_format={"type": "json_object"})
    assert sampling.json_schema == '{"type": "object"}'


def test_effort_is_what_templates_call_it() -> None:
    prompt, _ = read(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})
    assert dict(prompt.template_options) == {"reasoning_effort": "none", "thinking": False, "enable_thinking": True}
    _, sampling = read(reasoning_effort="none", regex="a")
    assert not sampling.reasoning_first
    _, sampling = read(reasoning_effort=0.5, regex="a")
    assert sampling.reasoning_first


def test_a_template_gets_tools_calls_and_their_results() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", **tool("cook")}], "reasoning_content": "mm"},
        {"role": "tool", "content": "done", "tool_call_id": "1"},
    ]
    messages[1]["tool_calls"][0]["function"] = {"name": "cook", "arguments": '{"a": 1}'}  # type: ignore[index]
    prompt, _ = read(messages=messages, tools=[tool("cook")])
    template = (
        "{{ tools[0].function.name }};{% for m in messages %}{{ m.role }}:{{ m.content }}"
        "{% if m.tool_calls %}{{ m.reasoning_content }}>{{ m.tool_calls[0].function.arguments.a + 1 }}{% endif %}"
        "{% if m.tool_call_id %}={{ m.tool_call_id }}{% endif %};{% endfor %}"
    )
    tokenizer = encoder().tokenizer
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        assert encoder().render(prompt) == "cook;user:hi;assistant:mm>2;tool:done=1;"
        tokenizer.chat_template = "{{ tools[0]['name'] ~ '' if tools[0]['name'] else raise_exception('wrapped') }}"
        assert encoder().render(prompt) == "cook", "without OpenAI's wrapper where the template wants that"
    finally:
        tokenizer.chat_template = before


async def said(workers: NotingWorkers, client: httpx.AsyncClient, pieces: list[str], **fields: Any) -> httpx.Response:
    """Asks with one tool, plays a worker that says these pieces and stops."""
    body = {"messages": HELLO, "tools": [tool("cook")], **fields}
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=body))
    submit = await workers.decodes[0].next_submit()
    workers.prefills[0].bring(finish(submit.room, session_pb2.FINISH_KIND_HANDED_OVER))
    for piece in pieces:
        workers.decodes[0].bring(tokens(submit.room, *map(ord, piece), text=piece))
    workers.decodes[0].bring(finish(submit.room, session_pb2.FINISH_KIND_STOP))
    return await asking


async def test_calls_come_back_whole_and_streamed() -> None:
    workers, limits = one_each(), AppLimits(parsers=PlainParsers(reasoning_parser="plain"))
    pieces = ["<think>so</th", "ink>Well <call cook ", '{"a":1}>', '<call cook {"a":2}>']
    async with http_client(workers, limits) as client:
        whole = (await said(workers, client, pieces)).json()["choices"][0]
        stream = (await said(workers, client, pieces, stream=True, logprobs=True)).text
        options = {"continuous_usage_stats": True}
        counted = (await said(workers, client, pieces, stream=True, stream_options=options)).text
        kept = (await said(workers, client, pieces, separate_reasoning=False)).json()["choices"][0]
        plain = (await said(workers, client, pieces, tool_choice="none")).json()["choices"][0]
    assert whole["finish_reason"] == "tool_calls"
    message = whole["message"]
    assert (message["content"], message["reasoning_content"]) == ("Well ", "so")
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "cook", "arguments": '{"a":1}'},
        {"name": "cook", "arguments": '{"a":2}'},
    ]
    *events, done = stream.strip().split("\n\n")
    assert done == "data: [DONE]"
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    deltas = [choice["delta"] for choice in choices]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "so"
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert calls == [{"index": place, **call} for place, call in enumerate(message["tool_calls"])]
    assert [choice["finish_reason"] for choice in choices[-2:]] == [None, "tool_calls"]
    counting = [json.loads(event.removeprefix("data: "))["usage"] for event in counted.strip().split("\n\n")[:-1]]
    assert counting[-1]["completion_tokens"] == sum(map(len, pieces))
    assert [one["completion_tokens"] for one in counting] == sorted(one["completion_tokens"] for one in counting)
    assert kept["message"]["content"].startswith("<think>so</think>Well ")
    assert "reasoning_content" not in kept["message"]
    assert "tool_calls" not in plain["message"]
    assert "<call cook" in plain["message"]["content"]
    assert plain["finish_reason"] == "stop"


async def test_an_answer_that_was_cut_off_says_so() -> None:
    workers = one_each()
    async with http_client(workers, AppLimits(parsers=PlainParsers())) as client:
        asking = asyncio.create_task(
            client.post("/v1/chat/completions", json={"messages": HELLO, "tools": [tool("cook")]})
        )
        submit = await workers.decodes[0].next_submit()
        assert submit.input_ids[0] == ord("["), "the template has the tool"
        workers.prefills[0].bring(finish(submit.room, session_pb2.FINISH_KIND_HANDED_OVER))
        workers.decodes[0].bring(tokens(submit.room, 1, text="<call cook {}>"))
        workers.decodes[0].bring(finish(submit.room, session_pb2.FINISH_KIND_LENGTH))
        choice = (await asking).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert len(choice["message"]["tool_calls"]) == 1


def test_without_sglang_a_configured_parser_is_an_error_that_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tandem.gateway.text.sglang_parsers", None)
    settings = GatewaySettings.load(model_path="m", tool_call_parser="qwen25")
    with pytest.raises(TandemError, match="need SGLang where the gateway runs") as caught:
        load_parsers(settings, encoder())
    assert caught.value.reason is ErrorReason.NOT_SUPPORTED
    assert load_parsers(GatewaySettings.load(model_path="m"), encoder()) is None
