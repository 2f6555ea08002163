"""The OpenAPI document says what the readers take: every field, and value by value."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jsonschema
import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.api import (
    generate_schema,
    messages_schema,
    openai_schema,
    openapi,
    responses_schema,
    sglang_fields,
    token_schema,
)
from tandem.gateway.api.chat_schema import CHAT_PROMPT_FIELDS
from tandem.gateway.api.field_schemas import REFUSED
from tandem.gateway.api.fields import Unsupported
from tandem.gateway.api.openai_schema import SchemaLimits
from tandem.gateway.api.tool_schema import TOOL_FIELDS
from tandem.gateway.web.paths import ENDPOINTS
from tests.support.gateway.doubles import http_client, one_each
from tests.support.gateway.plain_parsers import PlainParsers

LIMITS = SchemaLimits(max_n=4, max_batch=4, max_tokenize_size=300)
BODIES = openapi.bodies(LIMITS)
PARAMS = BODIES["/generate"]["properties"]["sampling_params"]["anyOf"][0]
LAST = [{"role": "assistant", "content": "I like"}]
LONG = "x" * 1025
TOOLS = [{"type": "function", "function": {"name": "cook", "parameters": {"type": "object"}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "cook", "arguments": "{}"}}


@dataclass(frozen=True, slots=True)
class Reader:
    """What reads an object, and a good one, in which any single field may be changed."""

    schema: dict[str, Any]
    read: Callable[[dict[str, Any]], object]
    good: dict[str, Any]
    known: frozenset[str]
    unsupported: Mapping[str, Unsupported]
    tied: frozenset[str] = field(default_factory=frozenset)
    """Fields whose values hang on other fields, which a JSON schema does not say here."""
    needed: frozenset[str] = field(default_factory=frozenset)
    """Fields that need another in their place."""
    each: frozenset[str] = field(default_factory=frozenset)
    """Fields of which a list has as many values as there are prompts: one."""

    def tries(self, name: str, value: object) -> bool:
        """Whether a value of a field can be judged by itself."""
        if name in self.needed and value is None:
            return False
        return not (name in self.each and isinstance(value, list) and len(value) != 1)


def said(*calls: object, content: object = None) -> list[dict[str, Any]]:
    """An assistant's message with tool calls."""
    return [{"role": "assistant", "content": content, "tool_calls": list(calls)}]


USE = {"type": "tool_use", "id": "1", "name": "cook", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "1", "content": "done"}
THOUGHT = {"type": "thinking", "thinking": "so", "signature": ""}


def blocks(role: str, *content: object) -> list[dict[str, Any]]:
    """A message of Anthropic's blocks."""
    return [{"role": role, "content": list(content)}]


def tool(**function: object) -> list[dict[str, Any]]:
    """One tool."""
    return [{"type": "function", "function": function}]


def params(value: dict[str, Any]) -> object:
    """Reads `sampling_params`."""
    return generate_schema.read_generate({"text": "a", "sampling_params": value}, LIMITS)


EACH = frozenset({"sampling_params", "rid", "return_logprob", "logprob_start_len", "top_logprobs_num"})
READERS = {
    "chat": Reader(
        BODIES["/v1/chat/completions"],
        lambda body: openai_schema.read_chat(body, LIMITS, PlainParsers()),
        {"messages": LAST, "stream": True, "logprobs": True, "tools": TOOLS},
        openai_schema.CHAT_FIELDS,
        openai_schema.CHAT_UNSUPPORTED,
        frozenset({"stream", "logprobs"}),
    ),
    "completion": Reader(
        BODIES["/v1/completions"],
        lambda body: openai_schema.read_completion(body, LIMITS),
        {"prompt": "a", "stream": True},
        openai_schema.COMPLETION_FIELDS,
        openai_schema.COMPLETION_UNSUPPORTED,
        frozenset({"best_of"}),
    ),
    "generate": Reader(
        BODIES["/generate"],
        lambda body: generate_schema.read_generate(body, LIMITS),
        {"text": "a"},
        generate_schema.GENERATE_FIELDS,
        sglang_fields.OF_GENERATE,
        frozenset({"input_ids"}),
        frozenset({"text"}),
        EACH,
    ),
    "generate from ids": Reader(
        BODIES["/generate"],
        lambda body: generate_schema.read_generate(body, LIMITS),
        {"input_ids": [1]},
        generate_schema.GENERATE_FIELDS,
        sglang_fields.OF_GENERATE,
        frozenset({"text"}),
        frozenset({"input_ids"}),
        EACH,
    ),
    "sampling_params": Reader(
        PARAMS,
        params,
        {"max_new_tokens": 1 << 20},
        generate_schema.GENERATE_SAMPLING_FIELDS,
        generate_schema.GENERATE_SAMPLING_UNSUPPORTED,
    ),
    "messages": Reader(
        BODIES["/v1/messages"],
        lambda body: messages_schema.read_message_call(body, PlainParsers()),
        {"messages": LAST, "max_tokens": 1, "tools": [{"name": "cook"}]},
        messages_schema.MESSAGES_FIELDS,
        messages_schema.MESSAGES_UNSUPPORTED,
    ),
    "responses": Reader(
        BODIES["/v1/responses"],
        lambda body: responses_schema.read_response(body, LIMITS, PlainParsers()),
        {"input": "a", "tools": [{"type": "function", "name": "cook"}]},
        responses_schema.RESPONSES_FIELDS,
        responses_schema.RESPONSES_UNSUPPORTED,
        frozenset({"input", "text", "reasoning", "tools"}),
    ),
    "count_tokens": Reader(
        BODIES["/v1/messages/count_tokens"],
        lambda body: messages_schema.read_count(body, LIMITS),
        {"messages": LAST, "tools": [{"name": "cook"}]},
        messages_schema.COUNT_FIELDS,
        messages_schema.MESSAGES_UNSUPPORTED,
        frozenset({"system"}),
    ),
    "tokenize": Reader(
        BODIES["/v1/tokenize"],
        lambda body: token_schema.read_tokenize(body, LIMITS),
        {"prompt": "a"},
        token_schema.TOKENIZE_FIELDS,
        token_schema.TOKENIZE_UNSUPPORTED,
        CHAT_PROMPT_FIELDS | TOOL_FIELDS,
        frozenset({"prompt"}),
    ),
    "tokenize a chat": Reader(
        BODIES["/v1/tokenize"],
        lambda body: token_schema.read_tokenize(body, LIMITS),
        {"messages": LAST, "tools": TOOLS},
        token_schema.TOKENIZE_FIELDS,
        token_schema.TOKENIZE_UNSUPPORTED,
        frozenset({"prompt", "add_special_tokens"}),
        frozenset({"messages"}),
    ),
    "detokenize": Reader(
        BODIES["/v1/detokenize"],
        lambda body: token_schema.read_detokenize(body, LIMITS),
        {"tokens": [1]},
        token_schema.DETOKENIZE_FIELDS,
        {},
    ),
}
VALUES: list[Any] = [
    *(None, True, False, -2, -1, 0, 1, 2, 3, 5, 100, 128, 129, 1 << 20, (1 << 20) + 1, 2**31, 2**63 - 1, 2**63),
    *(-2.5, -0.5, 0.25, 1.5, 2.25, "", "a", "none", LONG, [], {}, [1], [-1], [2**31], [True], [1.5], [[]], [[1]]),
    *([[1]] * 5, [1] * 65, ["a"], [""], ["a"] * 5, ["a"] * 17, [LONG], [None], [{}], [["a"]], ["a", 1], [1, "a"]),
    *({"a": "b"}, {"a": []}, {"messages": "a"}, {"1": 2.5}, {"1": 101}, {"1": None}, {"01": 1}, {"99999999999": 1}),
    *({"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}, {"type": "x"}),
    *({"type": "json_schema", "json_schema": {"schema": {}}}, {"type": "json_schema", "json_schema": {"schema": 1}}),
    *({"continuous_usage_stats": value} for value in (True, 1, None)),
    *({"include_usage": True}, {"include_usage": 1}, {"include_usage": None}, {"other": None}, {"other": 1}),
    *([{"role": "assistant", "content": text}] for text in ("a", "", None, [], [{"type": "text", "text": "a"}])),
    *([{"role": role, "content": "a"}] for role in ("user", "boss", "system", None)),
    *([{"role": "system", "content": "a"}, {"role": other, "content": "a"}] for other in ("user", "system")),
    *([{"role": "user", "content": [part]}] for part in ({"type": "image_url"}, {"type": "text"}, "a")),
    *(["text"], {"temperature": 0}, {"temperature": 9}, [{"temperature": 0}], [{"temperature": 9}], [{"n": 5}]),
    *({"role": "user", "content": "a"}, [{"role": "assistant", "content": "a", "tool_calls": [{}]}]),
    *(said(CALL), said({**CALL, "id": 1}), said({**CALL, "function": {"name": "cook"}}), said()),
    *(said(CALL, content="a"), said(content="a"), said(1)),
    *([{"role": "tool", "content": text, "tool_call_id": of}] for text in ("a", None) for of in ("1", 1, None)),
    *([{"role": "assistant", "content": "a", "reasoning_content": thought}] for thought in ("b", 1, None)),
    *(TOOLS, TOOLS * 2, TOOLS * 129, tool(), tool(name="cook"), tool(name=1), tool(name="cook", strict=None)),
    *(tool(name="cook", strict=1), tool(name="cook", parameters=[]), tool(name="cook", description=1)),
    *([{"type": "custom"}], [{"type": "function"}], "required", "high", 0.5, 0.99),
    *([{"name": "cook", "type": kind}] for kind in ("custom", None, "web_search_20250305")),
    *([{"name": "cook", "input_schema": schema}] for schema in ({}, None, 1)),
    *({"type": kind} for kind in ("auto", "any", "none", 1, None)),
    *({"type": "any", "disable_parallel_tool_use": parallel} for parallel in (True, 1, None)),
    *(blocks("assistant", USE), blocks("assistant", {**USE, "input": "{}"}), blocks("user", USE)),
    *(blocks("user", RESULT), blocks("user", {**RESULT, "content": 1}), blocks("user", {"type": "tool_result"})),
    *(blocks("user", {"type": "tool_result", "tool_use_id": None, "id": "1"}), blocks("user", {**RESULT, "id": 1})),
    *(blocks("user", {**RESULT, "content": []}), blocks("assistant", RESULT), blocks("user", RESULT, {"type": "x"})),
    *(blocks("assistant", THOUGHT), blocks("assistant", THOUGHT, USE), blocks("assistant", {"type": "thinking"}, USE)),
    *({"type": "function", "function": value} for value in ({"name": "cook"}, {"name": 1}, {}, "cook")),
]


@pytest.mark.parametrize("name", READERS)
def test_fields_are_those_of_the_reader(name: str) -> None:
    reader = READERS[name]
    properties = reader.schema["properties"]
    taken = {name for name, schema in properties.items() if REFUSED not in schema}
    assert taken == reader.known
    assert properties.keys() - taken == reader.unsupported.keys()
    assert all(schema["description"] for schema in properties.values())


@pytest.mark.parametrize("name", READERS)
def test_values_are_those_that_the_reader_takes(name: str) -> None:
    reader = READERS[name]
    validator = jsonschema.Draft202012Validator(reader.schema)
    wrong = []
    for changed in [*sorted(reader.schema["properties"].keys() - reader.tied), "no_such_field"]:
        for value in filter(partial(reader.tries, changed), VALUES):
            body = {**reader.good, changed: value}
            said, error = validator.is_valid(body), refusal(reader, body)
            if said != (error is None):
                wrong.append((changed, value, f"said to be {'good' if said else 'bad'}", error and error.message))
            elif error is not None:
                assert error.reason is ErrorReason.INVALID_ARGUMENT
                assert changed in (error.field or ""), f"{changed}={value!r} is blamed on {error.field}"
    assert not wrong


def refusal(reader: Reader, body: dict[str, Any]) -> TandemError | None:
    """Why a reader does not take a body."""
    try:
        reader.read(json.loads(json.dumps(body)))
    except TandemError as error:
        return error
    return None


async def test_the_document_is_served_and_names_every_endpoint_for_programs() -> None:
    async with http_client(one_each()) as client:
        served = (await client.get("/openapi.json")).json()
    assert served == json.loads(json.dumps(openapi.document(LIMITS)))
    found = {(path, method.upper()) for path, methods in served["paths"].items() for method in methods}
    pages = {(path, method) for path, method in ENDPOINTS.items() if path.startswith("/dashboard")}
    kept = {(path, method.upper()) for path, methods in openapi.KEPT.items() for method in methods}
    assert found == {*ENDPOINTS.items(), *kept, ("/v1/models/{model}", "GET")} - pages
    for methods in served["paths"].values():
        for operation in methods.values():
            content = operation.get("requestBody", {"content": {}})["content"]
            for media in content.values():
                jsonschema.Draft202012Validator.check_schema(media["schema"])
