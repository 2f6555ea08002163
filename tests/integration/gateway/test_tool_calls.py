"""Tool calls and reasoning with SGLang's own parsers, through the whole gateway, to the official client."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.api import generate_schema, openai_schema, sglang_fields
from tandem.gateway.settings import GatewaySettings
from tandem.gateway.text.parsers import load_parsers
from tandem.v1 import session_pb2
from tests.support.gateway.cluster import Cluster, cluster, encoder
from tests.support.gateway.fake_worker import FIRST_TOKEN, MODEL, Script, Send

pytestmark = pytest.mark.sglang

HELLO: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": CITY}}
TIME: Any = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
TOOLS: Any = [WEATHER, TIME]
MARKER = re.compile(r"<[|｜].+?[|｜]>|</?tool_call>|</?think>|\[TOOL_CALLS\]")
KIMI = "<|tool_call_begin|>functions.get_weather:{}<|tool_call_argument_begin|>{}<|tool_call_end|>"
DEEPSEEK = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{}\n```<｜tool▁call▁end｜>"
PARIS, ROME = '{"city": "Paris"}', '{"city": "Rome", "days": 3}'
WRITTEN = {
    "qwen25": f'Let me look.\n<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>\n'
    f'<tool_call>\n{{"name": "get_weather", "arguments": {ROME}}}\n</tool_call>',
    "hermes": f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>\n'
    f'<tool_call>\n{{"name": "get_weather", "arguments": {ROME}}}\n</tool_call>',
    "llama3": f'<|python_tag|>{{"name": "get_weather", "parameters": {PARIS}}};'
    f'{{"name": "get_weather", "parameters": {ROME}}}',
    "mistral": f"Sure. [TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]get_weather[ARGS]{ROME}",
    "deepseekv3": "Yes. <｜tool▁calls▁begin｜>"
    + "\n".join(DEEPSEEK.format(one) for one in (PARIS, ROME))
    + "<｜tool▁calls▁end｜>",
    "kimi_k2": "Well.<|tool_calls_section_begin|>"
    + "".join(KIMI.format(place, one) for place, one in enumerate((PARIS, ROME)))
    + "<|tool_calls_section_end|>",
    "pythonic": '[get_weather(city="Paris"), get_weather(city="Rome", days=3)]',
}
"""Two calls as models of each kind write them."""


def saying(pieces: Sequence[str], kind: int = session_pb2.FINISH_KIND_STOP) -> Script:
    """A decode worker that says these pieces and ends."""

    async def script(submit: session_pb2.Submit, send: Send) -> None:
        for place, piece in enumerate(pieces):
            send(session_pb2.Delta(room=submit.room, token_ids=[FIRST_TOKEN + place], text=piece))
            await asyncio.sleep(0)
        send(session_pb2.Delta(room=submit.room, finish=session_pb2.Finish(kind=kind)))  # type: ignore[arg-type]

    return script


def cut(text: str, size: int) -> list[str]:
    """A text in pieces of one size, of which none parts a marker: to models that use one it is a single token."""
    places = [0]
    for mark in MARKER.finditer(text):
        places += [mark.start(), mark.end()]
    parts = [text[start:end] for start, end in itertools.pairwise([*places, len(text)])]
    whole = [[part] if MARKER.fullmatch(part) or size >= len(text) else sliced(part, size) for part in parts]
    return list(itertools.chain(*whole)) if size < len(text) else [text]


def sliced(text: str, size: int) -> list[str]:
    """A text in pieces of one size."""
    return [text[place : place + size] for place in range(0, len(text), size)]


@dataclass(slots=True)
class Heard:
    """What a client puts together of a stream."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    """Id, name and arguments of each."""
    finish: str | None = None


async def streamed(now: Cluster, **asked: Any) -> Heard:
    """Asks for a stream."""
    heard = Heard()
    stream = await now.client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, **asked)
    async for chunk in stream:
        [choice] = chunk.choices
        heard.content += choice.delta.content or ""
        heard.reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        heard.finish = choice.finish_reason or heard.finish
        for call in choice.delta.tool_calls or []:
            assert call.function is not None
            if call.id:
                assert call.index == len(heard.calls), "calls are numbered from 0"
                heard.calls.append((call.id, call.function.name or "", ""))
            call_id, name, arguments = heard.calls[call.index]
            heard.calls[call.index] = (call_id, name, arguments + (call.function.arguments or ""))
    return heard


def sglang_says(parser: str, text: str) -> tuple[str, list[tuple[str, str]]]:
    """Text, and the names and arguments of calls, that SGLang finds by itself."""
    from sglang.srt.entrypoints.openai.protocol import Tool
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    content, calls = FunctionCallParser([Tool(**one) for one in TOOLS], parser).parse_non_stream(text)
    return content, [(call.name, call.parameters) for call in calls]


@pytest.mark.parametrize("size", [3, 1000])
@pytest.mark.parametrize("parser", WRITTEN)
async def test_calls_are_what_sglang_finds_whole_and_streamed(parser: str, size: int) -> None:
    text = WRITTEN[parser]
    wanted, wanted_calls = sglang_says(parser, text)
    assert [json.loads(arguments) for _, arguments in wanted_calls] == [json.loads(PARIS), json.loads(ROME)]
    async with cluster(decode=[saying(cut(text, size))], tool_call_parser=parser) as now:
        answer = await now.client.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS)
        heard = await streamed(now, tools=TOOLS)
    [choice] = answer.choices
    calls: Any = choice.message.tool_calls
    assert (choice.message.content or "") == wanted
    assert [(call.function.name, call.function.arguments) for call in calls] == wanted_calls
    assert choice.finish_reason == heard.finish == "tool_calls"
    assert heard.content.strip() == wanted.strip()
    assert [name for _, name, _ in heard.calls] == ["get_weather"] * 2
    assert [json.loads(arguments) for *_, arguments in heard.calls] == [json.loads(PARIS), json.loads(ROME)]
    assert len({call_id for call_id, *_ in heard.calls}) == 2
    if parser == "kimi_k2":
        assert [call.id for call in calls] == ["functions.get_weather:0", "functions.get_weather:1"]


async def test_a_text_without_calls_is_a_text() -> None:
    text = "It rains. 5 < 6 and <tool is no call, nor is [this]"
    async with cluster(decode=[saying(cut(text, 3))], tool_call_parser="qwen25") as now:
        answer = await now.client.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS)
        heard = await streamed(now, tools=TOOLS)
    assert answer.choices[0].message.content == heard.content == text
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == heard.finish == "stop"


async def test_a_forced_call_of_a_parser_without_a_grammar_of_its_own_is_a_list_in_json() -> None:
    text = f'[{{"name": "get_weather", "parameters": {PARIS}}}, {{"name": "get_time", "parameters": {{}}}}]'
    async with cluster(decode=[saying(cut(text, 5))], tool_call_parser="pythonic") as now:
        answer = await now.client.chat.completions.create(
            model=MODEL, messages=HELLO, tools=TOOLS, tool_choice="required"
        )
        heard = await streamed(now, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
        schemas = [json.loads(submit.sampling.json_schema) for submit in now.decodes[0].submits]
    calls: Any = answer.choices[0].message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("get_weather", json.loads(PARIS)),
        ("get_time", {}),
    ]
    assert [(name, json.loads(arguments)) for _, name, arguments in heard.calls] == [
        ("get_weather", json.loads(PARIS)),
        ("get_time", {}),
    ]
    assert heard.finish == "tool_calls"
    assert [schema.get("maxItems") for schema in schemas] == [None, 1]
    assert CITY["properties"] in [
        option["properties"]["parameters"]["properties"]
        for option in schemas[0]["items"]["anyOf"]
        if option["properties"]["name"]["enum"] == ["get_weather"]
    ]


async def test_a_forced_or_strict_call_in_a_models_own_form_is_held_to_a_structural_tag() -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    async with cluster(decode=[saying([WRITTEN["qwen25"]])], tool_call_parser="qwen25") as now:
        for asked in (
            {"tools": TOOLS},
            {"tools": [strict]},
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        ):
            await now.client.chat.completions.create(model=MODEL, messages=HELLO, **asked)  # type: ignore[call-overload]
        free, held, named = [submit.sampling for submit in now.decodes[0].submits]
    assert not free.structural_tag
    for sampling in (held, named):
        assert json.loads(sampling.structural_tag)["type"] == "structural_tag"
        assert "get_weather" in sampling.structural_tag
        assert not sampling.skip_special_tokens
    assert "get_time" not in named.structural_tag, "the grammar allows a call of a function that was not named"


async def test_definitions_of_one_name_and_two_meanings_are_refused() -> None:
    def tool(name: str, kind: str) -> dict[str, Any]:
        parameters = {
            "type": "object",
            "$defs": {"Place": {"type": kind}},
            "properties": {"a": {"$ref": "#/$defs/Place"}},
        }
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    two = [tool("f", "string"), tool("g", "integer")]
    async with cluster(tool_call_parser="llama3") as now:
        with pytest.raises(openai.BadRequestError, match="Place") as caught:
            await now.client.chat.completions.create(
                model=MODEL,
                messages=HELLO,
                tools=two,  # type: ignore[arg-type]
                tool_choice="required",
            )
    assert caught.value.param == "tools"


async def test_a_schema_that_is_none_is_refused() -> None:
    bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "required": 5}}}
    async with cluster(tool_call_parser="qwen25") as now:
        with pytest.raises(openai.BadRequestError) as caught:
            await now.client.chat.completions.create(model=MODEL, messages=HELLO, tools=[bad])  # type: ignore[list-item]
    assert caught.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize(
    ("parser", "text"),
    [("qwen3", "<think>\nParis, so.\n</think>\n\nIt rains."), ("deepseek-r1", "Paris, so.\n</think>\n\nIt rains.")],
)
async def test_reasoning_is_told_apart(parser: str, text: str) -> None:
    async with cluster(decode=[saying(cut(text, 4))], reasoning_parser=parser) as now:
        whole = await now.client.chat.completions.create(model=MODEL, messages=HELLO)
        heard = await streamed(now)
        late = await streamed(now, extra_body={"stream_reasoning": False})
        kept = await now.client.chat.completions.create(
            model=MODEL, messages=HELLO, extra_body={"separate_reasoning": False}
        )
    message: Any = whole.choices[0].message
    assert message.reasoning_content.strip() == heard.reasoning.strip() == late.reasoning.strip() == "Paris, so."
    assert message.content.strip() == heard.content.strip() == late.content.strip() == "It rains."
    assert kept.choices[0].message.content == text
    assert whole.choices[0].finish_reason == heard.finish == "stop"


async def test_reasoning_and_calls_go_together() -> None:
    text = "<think>\nI need the weather.\n</think>\n\n" + WRITTEN["hermes"]
    parsers = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
    async with cluster(decode=[saying(cut(text, 5))], **parsers) as now:
        whole = await now.client.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS)
        heard = await streamed(now, tools=TOOLS)
    message: Any = whole.choices[0].message
    assert message.reasoning_content.strip() == heard.reasoning.strip() == "I need the weather."
    assert len(message.tool_calls) == len(heard.calls) == 2
    assert (message.content or "").strip() == heard.content.strip() == ""


def fields_of_generate() -> list[str]:
    """Of SGLang's own request, read from its source: importing that brings the whole engine."""
    [package] = importlib.util.find_spec("sglang").submodule_search_locations
    tree = ast.parse((Path(package) / "srt/managers/io_struct.py").read_text(encoding="utf-8"))
    [request] = [one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == "GenerateReqInput"]
    return [one.target.id for one in request.body if isinstance(one, ast.AnnAssign)]


def test_every_field_that_sglang_takes_is_taken_or_refused_by_name() -> None:
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest

    for names, taken, refused in (
        (ChatCompletionRequest.model_fields, openai_schema.CHAT_FIELDS, openai_schema.CHAT_UNSUPPORTED),
        (CompletionRequest.model_fields, openai_schema.COMPLETION_FIELDS, openai_schema.COMPLETION_UNSUPPORTED),
        (fields_of_generate(), generate_schema.GENERATE_FIELDS, sglang_fields.OF_GENERATE),
    ):
        assert names
        assert not set(names) - taken - refused.keys()


@pytest.mark.parametrize("setting", ["tool_call_parser", "reasoning_parser"])
@pytest.mark.parametrize(("name", "says"), [("nonsense", "is not known"), ("kimi_k3", "no chat template writes")])
def test_parsers_that_there_are_not_are_an_error_at_start(setting: str, name: str, says: str) -> None:
    settings = GatewaySettings.load(model_path="m", **{setting: name})
    with pytest.raises(TandemError, match=says) as caught:
        load_parsers(settings, encoder())
    assert caught.value.reason is ErrorReason.INVALID_ARGUMENT
    assert "qwen" in caught.value.message
