"""Tools in requests of OpenAI's chats, checked: what may be called, what must be, and what was called so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from tandem.gateway.api.fields import Fields, kind_of, refuse, shown
from tandem.gateway.api.sampling import MAX_GRAMMAR_CHARACTERS
from tandem.gateway.text.tools import Tool, ToolCall, ToolChoice, ToolUse

MAX_TOOLS: Final = 128
MAX_TOOL_NAME: Final = 256
MAX_CALL_ID: Final = 256
MAX_CALLS: Final = 128
TOOL_FIELDS: Final = frozenset(["tools", "tool_choice", "parallel_tool_calls"])
"""Fields that `read_tool_use` takes."""


def read_tool_use(fields: Fields, calls_before: int = 0) -> ToolUse | None:
    """Reads what a client wants of tools; None if the model is to call none."""
    tools = _tools(fields)
    parallel = fields.boolean("parallel_tool_calls", default=True)
    choice, named = _choice(fields.raw("tool_choice"), tools)
    return ToolUse(tools, choice, named, parallel, calls_before) if tools and choice is not ToolChoice.NONE else None


def _tools(fields: Fields) -> tuple[Tool, ...]:
    value = fields.raw("tools")
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        refuse("tools", f"must be a list of at most {MAX_TOOLS} tools.")
    tools = tuple(_tool(f"tools[{place}]", one) for place, one in enumerate(value))
    if (characters := sum(len(tool.document) for tool in tools)) > MAX_GRAMMAR_CHARACTERS:
        refuse("tools", f"has {characters} characters as JSON; at most {MAX_GRAMMAR_CHARACTERS} are allowed.")
    return tools


def _tool(field: str, value: object) -> Tool:
    if not isinstance(value, dict) or value.get("type") != "function":
        refuse(field, 'must be {"type": "function", "function": {...}}; no other type of tool is offered.')
    function = value.get("function")
    if not isinstance(function, dict):
        refuse(f"{field}.function", f"must be an object with 'name', not {kind_of(function)}.")
    inner = Fields(function, f"{field}.function.")
    name = inner.text("name", 1, MAX_TOOL_NAME)
    if name is None:
        refuse(f"{field}.function.name", f"is missing. Give a text of 1..{MAX_TOOL_NAME} characters.")
    inner.text("description", 0, MAX_GRAMMAR_CHARACTERS)
    inner.object("parameters")
    inner.boolean("strict")
    return Tool(name, orjson.dumps({"type": "function", "function": function}).decode())


def _choice(value: object, tools: tuple[Tool, ...]) -> tuple[ToolChoice, str]:
    if value is None:
        return ToolChoice.AUTO, ""
    if isinstance(value, str) and value in ("none", "auto", "required"):
        if value == "required" and not tools:
            refuse("tool_choice", "is 'required', and there are no 'tools'.")
        return ToolChoice(value), ""
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        refuse(
            "tool_choice",
            "must be 'none', 'auto', 'required' or"
            f' {{"type": "function", "function": {{"name": "..."}}}}, not {shown(value)}.',
        )
    if name not in {tool.name for tool in tools}:
        refuse("tool_choice", f"names {shown(name)}, which is not among 'tools'.")
    return ToolChoice.REQUIRED, name


def read_calls(field: str, value: object) -> tuple[ToolCall, ...]:
    """Reads the calls that an assistant's message holds."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_CALLS:
        refuse(field, f"must be a list of at most {MAX_CALLS} calls.")
    return tuple(_call(f"{field}[{place}]", one) for place, one in enumerate(value))


def _call(field: str, value: object) -> ToolCall:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(function, dict):
        refuse(field, 'must be {"id": "...", "type": "function", "function": {"name": "...", "arguments": "{}"}}.')
    name = Fields(function, f"{field}.function.").text("name", 1, MAX_TOOL_NAME)
    if name is None:
        refuse(f"{field}.function.name", "is missing.")
    call_id = Fields(value, f"{field}.").text("id", 0, MAX_CALL_ID) or ""
    return ToolCall(call_id, name, arguments_text(f"{field}.function.arguments", function))


def arguments_text(field: str, function: Mapping[str, Any], name: str = "arguments") -> str:
    """The arguments of a call, given as an object or as its text. Refuses what is no JSON object."""
    given = function.get(name)
    if isinstance(given, dict):
        return orjson.dumps(given).decode()
    try:
        parsed = orjson.loads(given) if isinstance(given, str) else None
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict) or not isinstance(given, str):
        refuse(field, f"must be a JSON object, given as text, not {shown(given)}.")
    return given
