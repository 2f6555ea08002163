"""Requests of /v1/messages and /v1/messages/count_tokens, Anthropic's API, as the chats that they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from tandem.gateway.calls import Api, ChatPrompt, GenerateCall, Item, Message
from tandem.gateway.chat_schema import read_messages, read_role, text_of_parts
from tandem.gateway.fields import Fields, Unsupported, refuse
from tandem.gateway.openai_schema import SchemaLimits
from tandem.gateway.sampling import MAX_NEW_TOKENS, MAX_STOP_CHARACTERS, MAX_STOPS, read_sampling
from tandem.gateway.token_schema import TokenizeCall, require_size

ROLES: Final = ("user", "assistant")
_PROMPT_FIELDS: Final = frozenset(["model", "messages", "system", "cache_control"])
MESSAGES_FIELDS: Final = _PROMPT_FIELDS | frozenset(
    [
        "max_tokens",
        "stop_sequences",
        "stream",
        "temperature",
        "top_p",
        "top_k",
        "metadata",
        "service_tier",
    ]
)
COUNT_FIELDS: Final = _PROMPT_FIELDS
_NO_TOOLS: Final = "Tools are not offered here; use /v1/chat/completions."
_PLAIN_TEXT: Final = "Answers are plain text; use 'response_format' of /v1/chat/completions."
MESSAGES_UNSUPPORTED: Final = {
    "tools": Unsupported(_NO_TOOLS, ([],)),
    "tool_choice": Unsupported(_NO_TOOLS, ({"type": "none"}, {"type": "auto"})),
    "mcp_servers": Unsupported(_NO_TOOLS, ([],)),
    "container": Unsupported(_NO_TOOLS),
    "thinking": Unsupported("What a model thinks is part of its answer.", ({"type": "disabled"},)),
    "context_management": Unsupported("Send the messages that the model is to see."),
    "output_config": Unsupported(_PLAIN_TEXT, ({},)),
    "output_format": Unsupported(_PLAIN_TEXT),
}


def read_message_call(body: dict[str, Any]) -> GenerateCall:
    """Reads a request of /v1/messages."""
    fields = Fields(body)
    fields.require_known(MESSAGES_FIELDS, MESSAGES_UNSUPPORTED)
    most = fields.integer("max_tokens", 1, MAX_NEW_TOKENS)
    if most is None:
        refuse("max_tokens", f"is missing. Give a whole number of 1..{MAX_NEW_TOKENS}.")
    sampling = read_sampling(fields, max_new_tokens=most, seed=None)
    sampling.stop.extend(fields.texts("stop_sequences", MAX_STOPS, MAX_STOP_CHARACTERS))
    item = Item(_prompt(fields), "messages", sampling)
    return GenerateCall(Api.MESSAGES, fields.text("model", 1, 1024) or "", (item,), stream=fields.boolean("stream"))


def read_count(body: dict[str, Any], limits: SchemaLimits) -> TokenizeCall:
    """Reads a request of /v1/messages/count_tokens."""
    fields = Fields(body)
    fields.require_known(COUNT_FIELDS, MESSAGES_UNSUPPORTED)
    prompt = _prompt(fields)
    require_size("messages", prompt.characters, "characters", limits)
    return TokenizeCall(fields.text("model", 1, 1024) or "", (prompt,), single=True)


def _message(field: str, value: dict[str, Any]) -> Message:
    return Message(read_role(field, value, ROLES), text_of_parts(f"{field}.content", value.get("content")))


def _prompt(fields: Fields) -> ChatPrompt:
    messages = read_messages(fields, _message)
    system = fields.raw("system")
    # An assistant's message at the end is the beginning of the answer.
    prompt = ChatPrompt(messages, continue_last=messages[-1].role == "assistant")
    if system is None:
        return prompt
    return replace(prompt, messages=(Message("system", text_of_parts("system", system)), *messages))
