"""Tools and messages of Anthropic's API, as those of a chat."""

from __future__ import annotations

from typing import Any, Final

import orjson

from tandem.gateway.api.chat_schema import MAX_MESSAGES, read_role, text_of_parts
from tandem.gateway.api.fields import Fields, kind_of, refuse, shown
from tandem.gateway.api.tool_schema import MAX_CALL_ID, MAX_TOOL_NAME, read_tool_use
from tandem.gateway.calls import Message
from tandem.gateway.text.tools import ToolCall, ToolUse

ROLES: Final = ("user", "assistant", "system")
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
"""Anthropic's words for a choice, and OpenAI's."""


def read_anthropic_messages(fields: Fields) -> tuple[Message, ...]:
    """Reads 'messages'. Results of tools, which are the user's here, are messages of their own in a chat."""
    value = fields.raw("messages")
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        refuse("messages", f"must be a list of 1..{MAX_MESSAGES} messages, each with 'role' and 'content'.")
    messages: list[Message] = []
    for place, one in enumerate(value):
        field = f"messages[{place}]"
        if not isinstance(one, dict):
            refuse(field, f"must be an object with 'role' and 'content', not {kind_of(one)}.")
        role, content = read_role(field, one, ROLES), one.get("content")
        field = f"{field}.content"
        if role == "system" or not isinstance(content, list):
            messages.append(Message(role, text_of_parts(field, content)))
        elif role == "user":
            messages += _users(field, content)
        else:
            messages.append(_assistants(field, content))
    return tuple(messages)


def _users(field: str, blocks: list[Any]) -> list[Message]:
    found: list[Message] = []
    texts: list[Any] = []
    for place, block in enumerate(blocks):
        if _kind(block) != "tool_result":
            texts.append(block)
            continue
        name = f"{field}[{place}]"
        inner = Fields(block, f"{name}.")
        call_id, old_name = inner.text("tool_use_id", 1, MAX_CALL_ID), inner.text("id", 1, MAX_CALL_ID)
        if call_id is None:
            call_id = old_name
        if call_id is None:
            refuse(f"{name}.tool_use_id", "is missing.")
        content = block.get("content")
        text = "" if content in (None, []) else text_of_parts(f"{name}.content", content)
        found.append(Message("tool", text, call_id=call_id))
    if texts or not found:
        found.append(Message("user", text_of_parts(field, texts)))
    return found


def _assistants(field: str, blocks: list[Any]) -> Message:
    texts: list[Any] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for place, block in enumerate(blocks):
        kind, name = _kind(block), f"{field}[{place}]"
        if kind == "tool_use":
            calls.append(_call(name, block))
        elif kind == "thinking":
            thoughts.append(Fields(block, f"{name}.").text("thinking", 0, 1 << 24) or "")
        else:
            texts.append(block)
    text = text_of_parts(field, texts) if texts or not calls else ""
    return Message("assistant", text, tuple(calls), reasoning="".join(thoughts))


def _call(field: str, block: dict[str, Any]) -> ToolCall:
    inner = Fields(block, f"{field}.")
    call_id, name, given = inner.text("id", 1, MAX_CALL_ID), inner.text("name", 1, MAX_TOOL_NAME), inner.object("input")
    if call_id is None or name is None or given is None:
        refuse(field, "must have 'id', 'name' and 'input'.")
    return ToolCall(call_id, name, orjson.dumps(given).decode())


def _kind(block: object) -> object:
    return block.get("type") if isinstance(block, dict) else None


def read_anthropic_tools(fields: Fields, calls_before: int) -> ToolUse | None:
    """Reads 'tools' and 'tool_choice'; None if the model is to call none."""
    tools = fields.raw("tools")
    if tools is not None and not isinstance(tools, list):
        refuse("tools", "must be a list of tools.")
    given = fields.object("tool_choice")
    choice = {"type": "auto"} if given is None else given
    kind = choice.get("type")
    if kind not in (*_CHOICES, "tool"):
        refuse("tool_choice.type", f"must be auto, any, tool or none, not {shown(kind)}.")
    parallel = not Fields(choice, "tool_choice.").boolean("disable_parallel_tool_use")
    named = {"type": "function", "function": {"name": choice.get("name")}}
    chat = {
        "tools": [_wrapped(f"tools[{place}]", one) for place, one in enumerate(tools or [])],
        "tool_choice": named if kind == "tool" else _CHOICES[str(kind)],
        "parallel_tool_calls": parallel,
    }
    return read_tool_use(Fields(chat), calls_before)


def _wrapped(field: str, tool: object) -> dict[str, Any]:
    if not isinstance(tool, dict):
        refuse(field, f"must be an object, not {kind_of(tool)}.")
    if tool.get("type") not in (None, "custom"):
        refuse(f"{field}.type", f"must be 'custom': tools are functions of the client's, not {shown(tool['type'])}.")
    inner = Fields(tool, f"{field}.")
    name = inner.text("name", 1, MAX_TOOL_NAME)
    if name is None:
        refuse(f"{field}.name", "is missing.")
    function = {
        "name": name,
        "description": inner.text("description", 0, 1 << 16),
        "parameters": inner.object("input_schema"),
        "strict": inner.boolean("strict") or None,
    }
    return {
        "type": "function",
        "function": {name: value for name, value in function.items() if value is not None},
    }
