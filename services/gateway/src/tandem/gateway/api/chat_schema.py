"""A chat, as every API that takes one gives it: messages and variables of the model's template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tandem.gateway.api.fields import Fields, kind_of, refuse, shown
from tandem.gateway.api.tool_schema import MAX_CALL_ID, read_calls
from tandem.gateway.calls import ChatPrompt, Message
from tandem.gateway.text.speech import TemplateOptions

MAX_MESSAGES: Final = 4096
ROLES: Final = ("system", "developer", "user", "assistant", "tool")
EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "ultra", "max")
MOST_EFFORT: Final = 0.99
MAX_REASONING: Final = 1 << 24
CHAT_PROMPT_FIELDS: Final = frozenset(
    ["messages", "chat_template_kwargs", "continue_final_message", "reasoning_effort"]
)
"""Fields that `read_chat_prompt` takes."""

RESERVED_TEMPLATE_OPTIONS: Final = frozenset(
    [
        "messages",
        "conversation",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "tokenizer_kwargs",
        "return_assistant_tokens_mask",
    ]
)


def read_chat_prompt(fields: Fields) -> ChatPrompt:
    """Reads the prompt of a chat."""
    prompt = ChatPrompt(
        read_chat_messages(fields),
        _template_options(fields),
        continue_last=fields.boolean("continue_final_message"),
    )
    if prompt.continue_last and prompt.messages[-1].role != "assistant":
        refuse("continue_final_message", "needs a last message of the role 'assistant'.")
    return prompt


def _template_options(fields: Fields) -> TemplateOptions:
    options = fields.object("chat_template_kwargs") or {}
    for name, value in options.items():
        if name in RESERVED_TEMPLATE_OPTIONS or not isinstance(value, str | int | float | bool):
            refuse(f"chat_template_kwargs.{name}", "must be a template variable with a text, number or boolean value.")
    return tuple((_effort_options(fields) | options).items())


def _effort_options(fields: Fields) -> dict[str, str | int | float | bool]:
    """Variables that 'reasoning_effort' stands for. Models differ in what they call them."""
    effort = fields.raw("reasoning_effort")
    if effort is None:
        return {}
    if isinstance(effort, str):
        if effort not in EFFORTS:
            refuse(fields.path("reasoning_effort"), f"must be one of {', '.join(EFFORTS)}, or a number.")
    else:
        effort = fields.number("reasoning_effort", 0, MOST_EFFORT)
    thinks = effort != "none"
    return {"reasoning_effort": effort, "thinking": thinks, "enable_thinking": thinks}


def read_chat_messages(fields: Fields) -> tuple[Message, ...]:
    """Reads the messages of one of OpenAI's chats."""
    return read_messages(fields, _message)


def read_messages(fields: Fields, read_one: Callable[[str, dict[str, Any]], Message]) -> tuple[Message, ...]:
    """Reads the messages of a chat. read_one: reads one, given its full name."""
    value = fields.raw("messages")
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        refuse("messages", f"must be a list of 1..{MAX_MESSAGES} messages, each with 'role' and 'content'.")
    messages = []
    for place, one in enumerate(value):
        if not isinstance(one, dict):
            refuse(f"messages[{place}]", f"must be an object with 'role' and 'content', not {kind_of(one)}.")
        messages.append(read_one(f"messages[{place}]", one))
    return tuple(messages)


def read_role(field: str, message: dict[str, Any], roles: tuple[str, ...]) -> str:
    """The role of a message, one of these."""
    role = message.get("role")
    if not isinstance(role, str) or role not in roles:
        refuse(f"{field}.role", f"must be one of {', '.join(roles)}, not {shown(role)}.")
    return role


def _message(field: str, value: dict[str, Any]) -> Message:
    role = read_role(field, value, ROLES)
    inner, content = Fields(value, f"{field}."), value.get("content")
    calls = read_calls(f"{field}.tool_calls", value.get("tool_calls")) if role == "assistant" else ()
    text = "" if content is None and calls else text_of_parts(f"{field}.content", content)
    return Message(
        "system" if role == "developer" else role,
        text,
        calls,
        (inner.text("tool_call_id", 0, MAX_CALL_ID) or "") if role == "tool" else "",
        (inner.text("reasoning_content", 0, MAX_REASONING) or "") if role == "assistant" else "",
    )


def text_of_parts(field: str, parts: object) -> str:
    """A content, which is a text or a list of text parts, as one text."""
    if isinstance(parts, str):
        return parts
    if not isinstance(parts, list) or not parts:
        refuse(field, f"must be a text or a list of text parts, not {kind_of(parts)}.")
    texts = []
    for place, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            refuse(
                f"{field}[{place}]", f'must be {{"type": "text", "text": "..."}}; the type {shown(kind)} is not taken.'
            )
        texts.append(part["text"])
    return "".join(texts)
