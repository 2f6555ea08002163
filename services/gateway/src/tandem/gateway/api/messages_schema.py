"""Requests of /v1/messages and /v1/messages/count_tokens, Anthropic's API, as the chats that they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from tandem.gateway.api.chat_schema import text_of_parts
from tandem.gateway.api.fields import Fields, Unsupported, refuse
from tandem.gateway.api.hearing import heard
from tandem.gateway.api.messages_tools import read_anthropic_messages, read_anthropic_tools
from tandem.gateway.api.openai_schema import SchemaLimits
from tandem.gateway.api.sampling import MAX_NEW_TOKENS, MAX_STOP_CHARACTERS, MAX_STOPS, read_sampling
from tandem.gateway.api.token_schema import TokenizeCall, require_size
from tandem.gateway.calls import Api, ChatPrompt, GenerateCall, Item, Message
from tandem.gateway.text.speech import Parsers

_PROMPT_FIELDS: Final = frozenset(["model", "messages", "system", "cache_control", "tools", "tool_choice"])
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
_NO_TOOLS: Final = "Tools are functions of the client's only."
_PLAIN_TEXT: Final = "Answers are plain text; use 'response_format' of /v1/chat/completions."
MESSAGES_UNSUPPORTED: Final = {
    "mcp_servers": Unsupported(_NO_TOOLS, ([],)),
    "container": Unsupported(_NO_TOOLS),
    "thinking": Unsupported("What a model thinks is part of its answer.", ({"type": "disabled"},)),
    "context_management": Unsupported("Send the messages that the model is to see."),
    "output_config": Unsupported(_PLAIN_TEXT, ({},)),
    "output_format": Unsupported(_PLAIN_TEXT),
}


def read_message_call(body: dict[str, Any], parsers: Parsers | None = None) -> GenerateCall:
    """Reads a request of /v1/messages. parsers: what takes answers apart, if anything does."""
    fields = Fields(body)
    fields.require_known(MESSAGES_FIELDS, MESSAGES_UNSUPPORTED)
    most = fields.integer("max_tokens", 1, MAX_NEW_TOKENS)
    if most is None:
        refuse("max_tokens", f"is missing. Give a whole number of 1..{MAX_NEW_TOKENS}.")
    sampling = read_sampling(fields, max_new_tokens=most, seed=None)
    sampling.stop.extend(fields.texts("stop_sequences", MAX_STOPS, MAX_STOP_CHARACTERS))
    prompt = _prompt(fields)
    prompt, hearing = heard(prompt, sampling, read_anthropic_tools(fields, prompt.calls), parsers)
    return GenerateCall(
        Api.MESSAGES,
        fields.text("model", 1, 1024) or "",
        (Item(prompt, "messages", sampling),),
        stream=fields.boolean("stream"),
        hearing=hearing,
    )


def read_count(body: dict[str, Any], limits: SchemaLimits) -> TokenizeCall:
    """Reads a request of /v1/messages/count_tokens."""
    fields = Fields(body)
    fields.require_known(COUNT_FIELDS, MESSAGES_UNSUPPORTED)
    prompt = _prompt(fields)
    use = read_anthropic_tools(fields, 0)
    if use is not None:
        prompt = replace(prompt, tools=use.shown)
    require_size("messages", prompt.characters, "characters", limits)
    return TokenizeCall(fields.text("model", 1, 1024) or "", (prompt,), single=True)


def _prompt(fields: Fields) -> ChatPrompt:
    messages = read_anthropic_messages(fields)
    said = [one for one in messages if one.role != "system"]
    if not said:
        refuse("messages", "must hold a message of the user or of the assistant.")
    # What the system says among the messages comes first too: few templates have a place for it elsewhere.
    system = [one.content for one in messages if one.role == "system"]
    if (first := fields.raw("system")) is not None:
        system.insert(0, text_of_parts("system", first))
    head = [Message("system", "\n".join(system))] if system else []
    # An assistant's message at the end is the beginning of the answer.
    return ChatPrompt((*head, *said), continue_last=said[-1].role == "assistant")
