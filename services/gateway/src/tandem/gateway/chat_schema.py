"""A chat, as every API that takes one gives it: messages and variables of the model's template."""

from __future__ import annotations

from typing import Final

from tandem.gateway.calls import ChatPrompt, Message
from tandem.gateway.fields import Fields, kind_of, refuse, shown

MAX_MESSAGES: Final = 4096
ROLES: Final = ("system", "developer", "user", "assistant")
CHAT_PROMPT_FIELDS: Final = frozenset(["messages", "chat_template_kwargs", "continue_final_message"])
"""Fields that `read_chat_prompt` takes."""

NO_TOOLS: Final = "Tools are not offered; describe them in a message instead."
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
        read_messages(fields), _template_options(fields), continue_last=fields.boolean("continue_final_message")
    )
    if prompt.continue_last and prompt.messages[-1].role != "assistant":
        refuse("continue_final_message", "needs a last message of the role 'assistant'.")
    return prompt


def _template_options(fields: Fields) -> tuple[tuple[str, str | int | float | bool], ...]:
    options = fields.object("chat_template_kwargs") or {}
    for name, value in options.items():
        if name in RESERVED_TEMPLATE_OPTIONS or not isinstance(value, str | int | float | bool):
            refuse(f"chat_template_kwargs.{name}", "must be a template variable with a text, number or boolean value.")
    return tuple(options.items())


def read_messages(fields: Fields, roles: tuple[str, ...] = ROLES) -> tuple[Message, ...]:
    """Reads the messages of a chat, each of one of the roles."""
    value = fields.raw("messages")
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        refuse("messages", f"must be a list of 1..{MAX_MESSAGES} messages, each with 'role' and 'content'.")
    return tuple(_message(f"messages[{place}]", one, roles) for place, one in enumerate(value))


def _message(field: str, value: object, roles: tuple[str, ...]) -> Message:
    if not isinstance(value, dict):
        refuse(field, f"must be an object with 'role' and 'content', not {kind_of(value)}.")
    role = value.get("role")
    if role not in roles:
        refuse(f"{field}.role", f"must be one of {', '.join(roles)}, not {shown(role)}.")
    if value.get("tool_calls"):
        refuse(f"{field}.tool_calls", f"is not supported here. {NO_TOOLS}")
    text = text_of_parts(f"{field}.content", value.get("content"))
    return Message("system" if role == "developer" else role, text)


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
