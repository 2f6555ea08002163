"""Requests of /v1/responses, OpenAI's newer API, as the chats that they are."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from tandem.core.errors import TandemError
from tandem.gateway.api.chat_schema import MAX_MESSAGES, read_chat_messages
from tandem.gateway.api.fields import Fields, Unsupported, kind_of, refuse, shown
from tandem.gateway.api.openai_schema import SchemaLimits, read_chat
from tandem.gateway.api.sampling import MAX_NEW_TOKENS
from tandem.gateway.calls import Api, ChatPrompt, GenerateCall, Message, ResponsePlan
from tandem.gateway.text.speech import Parsers

ID_PREFIX: Final = "resp_"
"""What the id of an answer begins with."""
MAX_ID: Final = 128
SAME: Final = (
    "model",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "stop",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "prompt_cache_key",
    "user",
)
"""Fields that are those of /v1/chat/completions."""
RESPONSES_FIELDS: Final = frozenset(
    [
        *SAME,
        "input",
        "instructions",
        "max_output_tokens",
        "tools",
        "tool_choice",
        "text",
        "reasoning",
        "previous_response_id",
        "store",
        "metadata",
        "service_tier",
        "safety_identifier",
        "stream_options",
    ]
)
_ONLY_FUNCTIONS: Final = "Tools are functions of the client's only."
RESPONSES_UNSUPPORTED: Final = {
    "background": Unsupported("Answers come on the connection that asked for them; use 'stream'.", (False,)),
    "conversation": Unsupported("Use 'previous_response_id'."),
    "include": Unsupported("Leave it out.", ([],)),
    "prompt": Unsupported("Send 'instructions' and 'input' themselves."),
    "truncation": Unsupported("Send what fits into the model's context.", ("disabled",)),
    "max_tool_calls": Unsupported(_ONLY_FUNCTIONS),
    "top_logprobs": Unsupported("Use /v1/chat/completions.", (0,)),
    "context_management": Unsupported("Send the messages that the model is to see."),
}
_WORDS: Final = {
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "messages": "input",
    ".function.": ".",
    ".function": "",
}
"""Names of fields of a chat, and what they are called here."""
_PARTS: Final = ("input_text", "output_text", "text")


def new_id() -> str:
    """An id for an answer."""
    return f"{ID_PREFIX}{secrets.token_hex(24)}"


def read_response(
    body: dict[str, Any], limits: SchemaLimits, parsers: Parsers | None, name: Callable[[], str] = new_id
) -> GenerateCall:
    """Reads a request of /v1/responses. What it goes on from is added by `gone_on`. name: makes the answer's id."""
    fields = Fields(body)
    fields.require_known(RESPONSES_FIELDS, RESPONSES_UNSUPPORTED)
    fields.object("stream_options")
    keep = fields.boolean("store", default=True)
    metadata = fields.object("metadata") or {}
    instructions = fields.text("instructions", 0, 1 << 24)
    previous_id = fields.text("previous_response_id", 1, MAX_ID)
    if previous_id is not None and not previous_id.startswith(ID_PREFIX):
        refuse("previous_response_id", f"must be the id of an answer, which begins with {ID_PREFIX!r}.")
    chat: dict[str, Any] = {name: body[name] for name in SAME if name in body}
    chat["max_completion_tokens"] = fields.integer("max_output_tokens", 1, MAX_NEW_TOKENS)
    chat["messages"] = _messages(fields.raw("input"))
    chat["response_format"] = _format(fields.object("text"))
    chat["reasoning_effort"] = _effort(fields.object("reasoning"))
    chat["tools"] = _tools(fields.raw("tools"))
    chat["tool_choice"] = _choice(fields.raw("tool_choice"))
    try:
        own = read_chat_messages(Fields(chat))
        call = read_chat(chat, limits, parsers)
    except TandemError as error:
        raise _in_words_of_this_api(error) from None
    [item] = call.items
    assert isinstance(item.prompt, ChatPrompt)
    head = (Message("system", instructions),) if instructions else ()
    echo = _echo(body, metadata, keep=keep)
    plan = ResponsePlan(name(), own, echo, keep, previous_id or "")
    prompt = replace(item.prompt, messages=(*head, *own))
    return replace(call, api=Api.RESPONSES, plan=plan, items=(replace(item, prompt=prompt, field="input"),))


def gone_on(call: GenerateCall, plan: ResponsePlan, before: tuple[Message, ...], owner: str) -> GenerateCall:
    """A call with the chat that it goes on from, and its owner. before: that chat. Raises INVALID_ARGUMENT."""
    if not plan.previous_id:
        return replace(call, plan=replace(plan, owner=owner))
    said = (*before, *plan.messages)
    if len(said) > MAX_MESSAGES:
        refuse("input", f"makes a chat of {len(said)} messages; at most {MAX_MESSAGES} are allowed.")
    [item] = call.items
    assert isinstance(item.prompt, ChatPrompt)
    head = item.prompt.messages[: len(item.prompt.messages) - len(plan.messages)]
    prompt = replace(item.prompt, messages=(*head, *said))
    hearing = call.hearing
    if hearing is not None and hearing.tools is not None:
        hearing = replace(hearing, tools=replace(hearing.tools, calls_before=prompt.calls))
    plan = replace(plan, messages=said, owner=owner)
    return replace(call, plan=plan, hearing=hearing, items=(replace(item, prompt=prompt),))


def _in_words_of_this_api(error: TandemError) -> TandemError:
    def changed(text: str) -> str:
        for theirs, ours in _WORDS.items():
            text = text.replace(theirs, ours)
        return text

    field = changed(error.field) if error.field else error.field
    message = error.message.replace(f"'{error.field}'", f"'{field}'", 1) if error.field else error.message
    return TandemError(error.reason, message, field=field)


def _messages(value: object) -> list[dict[str, Any]]:
    """Items of 'input' as messages of a chat."""
    if isinstance(value, str):
        if not value:
            refuse("input", "is empty. Give at least one character.")
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        refuse("input", f"must be a text, or a list of 1..{MAX_MESSAGES} items.")
    messages: list[dict[str, Any]] = []
    for place, item in enumerate(value):
        field = f"input[{place}]"
        if not isinstance(item, dict):
            refuse(field, f"must be an object with 'type', not {kind_of(item)}.")
        _add(messages, field, item)
    return messages


def _add(messages: list[dict[str, Any]], field: str, item: dict[str, Any]) -> None:
    """Adds one item. An assistant's reasoning, text and calls are items here, and one message of a chat."""
    kind = item.get("type", "message")
    if kind == "message":
        role, content = item.get("role"), _text(f"{field}.content", item.get("content"))
        last = messages[-1] if messages and role == "assistant" else None
        if last is not None and last["role"] == "assistant" and not last["content"] and "tool_calls" not in last:
            last["content"] = content
        else:
            messages.append({"role": role, "content": content})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        _assistants(messages).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = _text(f"{field}.output", item.get("output"))
        messages.append({"role": "tool", "content": content, "tool_call_id": item.get("call_id")})
    elif kind == "reasoning":
        parts = item.get("content") or []
        if not isinstance(parts, list):
            refuse(f"{field}.content", "must be a list.")
        texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
        messages.append({"role": "assistant", "content": "", "reasoning_content": "".join(texts)})
    else:
        refuse(
            f"{field}.type",
            f"must be message, function_call, function_call_output or reasoning, not {shown(kind)}.",
        )


def _assistants(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message that a call belongs to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _text(field: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        refuse(field, f"must be a text or a list of text parts, not {kind_of(content)}.")
    texts = []
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _PARTS or not isinstance(part.get("text"), str):
            refuse(f"{field}[{place}]", f"must be a part of the type {', '.join(_PARTS)}, not {shown(kind)}.")
        texts.append(part["text"])
    return "".join(texts)


def _format(text: Mapping[str, Any] | None) -> object:
    """'text.format' as a chat's 'response_format'."""
    if text is None:
        return None
    inner = Fields(text, "text.")
    inner.require_known(frozenset({"format"}), {"verbosity": Unsupported("Say it in 'instructions'.", ("medium",))})
    found = inner.object("format")
    if found is not None and found.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {"schema": found.get("schema")}}
    return found


def _effort(reasoning: Mapping[str, Any] | None) -> object:
    if reasoning is None:
        return None
    inner = Fields(reasoning, "reasoning.")
    inner.require_known(frozenset({"effort", "summary", "generate_summary"}), {})
    return inner.raw("effort")


def _tools(value: object) -> object:
    """Functions, which have no wrapper here, as a chat's tools."""
    if not isinstance(value, list):
        return value
    return [_wrapped(tool) for tool in value]


def _wrapped(tool: object) -> object:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool
    return {"type": "function", "function": {name: one for name, one in tool.items() if name != "type"}}


def _choice(value: object) -> object:
    if isinstance(value, dict) and value.get("type") == "function":
        return {"type": "function", "function": {"name": value.get("name")}}
    return value


def _echo(body: Mapping[str, Any], metadata: Mapping[str, Any], *, keep: bool) -> dict[str, Any]:
    """What the answer says again of the request."""
    choice = body.get("tool_choice")
    parallel = body.get("parallel_tool_calls")
    return {
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": dict(metadata),
        "parallel_tool_calls": True if parallel is None else parallel,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": body.get("reasoning") or {"effort": None, "summary": None},
        "store": keep,
        "temperature": body.get("temperature"),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": "auto" if choice is None else choice,
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p"),
        "truncation": "disabled",
        "user": body.get("user"),
    }
