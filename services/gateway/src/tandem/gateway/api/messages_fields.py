"""JSON schemas of the fields of /v1/messages, Anthropic's API; see api_fields."""

from __future__ import annotations

from typing import Final

from tandem.gateway.api import sampling
from tandem.gateway.api.chat_schema import MAX_MESSAGES
from tandem.gateway.api.field_schemas import (
    CONTENT,
    MODEL,
    PART,
    SAMPLING,
    STREAM,
    TOOLS,
    UNUSED,
    Fields,
    Schema,
    described,
    integer,
    list_of,
    nullable,
    string,
)
from tandem.gateway.api.tool_schema import MAX_CALL_ID, MAX_TOOL_NAME, MAX_TOOLS

_ANTHROPIC_TOOL: Final[Schema] = {
    "title": '`{"name": "f", "input_schema": {}}`',
    "type": "object",
    "properties": {
        "type": {"enum": ["custom", None]},
        "name": string(1, MAX_TOOL_NAME),
        "description": nullable(string(0, 1 << 16)),
        "input_schema": {"type": ["object", "null"]},
        "strict": {"type": ["boolean", "null"]},
    },
    "required": ["name"],
}
_ANTHROPIC_CHOICE: Final[Schema] = {
    "title": '`{"type": "auto"}`, `"any"`, `"none"`, or `{"type": "tool", "name": "f"}`',
    "type": "object",
    "properties": {
        "type": {"enum": ["auto", "any", "none", "tool"]},
        "disable_parallel_tool_use": {"type": ["boolean", "null"]},
    },
    "required": ["type"],
}


def _anthropic_messages() -> Schema:
    """Messages of Anthropic's chats, whose content may hold calls of tools and their results."""
    call: Schema = {
        "type": "object",
        "properties": {
            "type": {"const": "tool_use"},
            "id": string(1, MAX_CALL_ID),
            "name": string(1, MAX_TOOL_NAME),
            "input": {"type": "object"},
        },
        "required": ["type", "id", "name", "input"],
    }
    thought: Schema = {
        "type": "object",
        "properties": {"type": {"const": "thinking"}, "thinking": {"type": ["string", "null"]}},
        "required": ["type"],
    }
    call_id = string(1, MAX_CALL_ID)
    result: Schema = {
        "type": "object",
        "properties": {
            "type": {"const": "tool_result"},
            "tool_use_id": nullable(call_id),
            "id": nullable(call_id),
            "content": {"anyOf": [{"type": "string"}, list_of(PART), {"type": "null"}]},
        },
        "required": ["type"],
        "anyOf": [{"required": [name], "properties": {name: call_id}} for name in ("tool_use_id", "id")],
    }

    def content(*blocks: Schema) -> Schema:
        return {"anyOf": [{"type": "string"}, list_of({"anyOf": [PART, *blocks]}, 1)]}

    only_thoughts = {"properties": {"content": {"type": "array", "items": thought}}}
    kinds: list[Schema] = [
        {"properties": {"role": {"const": "user"}, "content": content(result)}},
        {"properties": {"role": {"const": "assistant"}, "content": content(call, thought)}, "not": only_thoughts},
        {"properties": {"role": {"const": "system"}, "content": content()}},
    ]
    message = {"title": "messages", "type": "object", "required": ["role", "content"], "oneOf": kinds}
    others = {"contains": {"properties": {"role": {"not": {"const": "system"}}}}}
    return {**list_of(message, 1, MAX_MESSAGES), **others}


def count() -> Fields:
    """Fields of /v1/messages/count_tokens."""
    return {
        "model": MODEL,
        "messages": described(
            "The chat so far. An assistant's message at the end is the beginning of the answer; those of the system"
            " are put before all others.",
            _anthropic_messages(),
        ),
        "tools": described(TOOLS["tools"]["description"], list_of(_ANTHROPIC_TOOL, None, MAX_TOOLS)),
        "tool_choice": described(TOOLS["tool_choice"]["description"], _ANTHROPIC_CHOICE),
        "system": described("What comes before the chat.", CONTENT),
        "cache_control": UNUSED,
    }


def messages() -> Fields:
    """Fields of /v1/messages."""
    return {
        **count(),
        "max_tokens": described("New tokens at most; needed.", integer(1, sampling.MAX_NEW_TOKENS)),
        "stream": STREAM,
        "stop_sequences": SAMPLING["stop"],
        **{name: SAMPLING[name] for name in ("temperature", "top_p", "top_k")},
        **dict.fromkeys(("metadata", "service_tier"), UNUSED),
    }
