"""Requests of /v1/tokenize and /v1/detokenize, SGLang's own, checked field by field."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from tandem.gateway.api.chat_schema import CHAT_PROMPT_FIELDS, read_chat_prompt
from tandem.gateway.api.fields import Fields, Unsupported, is_list_of, kind_of, refuse, token_ids
from tandem.gateway.api.openai_schema import SchemaLimits
from tandem.gateway.api.tool_schema import TOOL_FIELDS, read_tool_use
from tandem.gateway.calls import ChatPrompt, TextPrompt

TOKENIZE_FIELDS: Final = CHAT_PROMPT_FIELDS | TOOL_FIELDS | {"model", "prompt", "add_special_tokens"}
TOKENIZE_UNSUPPORTED: Final = {
    "add_generation_prompt": Unsupported(
        "Messages are written as for a chat, with the beginning of an answer.", (True,)
    ),
}
DETOKENIZE_FIELDS: Final = frozenset(["model", "tokens", "skip_special_tokens"])


@dataclass(frozen=True, slots=True)
class TokenizeCall:
    """What is to be tokenized."""

    model: str
    """As the client wrote it; empty = the one that is served."""
    prompts: tuple[ChatPrompt, ...] | tuple[TextPrompt, ...]
    single: bool
    """False if the answer is a list of lists."""

    @property
    def field(self) -> str:
        """Name of the request field that holds it."""
        return "messages" if isinstance(self.prompts[0], ChatPrompt) else "prompt"


@dataclass(frozen=True, slots=True)
class DetokenizeCall:
    """What is to become text."""

    model: str
    """As the client wrote it; empty = the one that is served."""
    lists: tuple[tuple[int, ...], ...]
    single: bool
    """False if the answer is a list of texts."""
    skip_special_tokens: bool


def read_tokenize(body: dict[str, Any], limits: SchemaLimits) -> TokenizeCall:
    """Reads a request of /v1/tokenize."""
    fields = Fields(body)
    fields.require_known(TOKENIZE_FIELDS, TOKENIZE_UNSUPPORTED)
    model = fields.text("model", 1, 1024) or ""
    prompt, chat = fields.raw("prompt"), fields.raw("messages")
    if (prompt is None) == (chat is None):
        refuse("prompt", "or 'messages' must be given, and not both.")
    special = fields.boolean("add_special_tokens", default=prompt is not None)
    if chat is not None:
        if special:
            refuse("add_special_tokens", "is allowed only with 'prompt'; a chat's template writes them itself.")
        chat_prompt = read_chat_prompt(fields)
        use = read_tool_use(fields)
        if use is not None:
            chat_prompt = replace(chat_prompt, tools=use.shown)
        require_size("messages", chat_prompt.characters, "characters", limits)
        return TokenizeCall(model, (chat_prompt,), single=True)
    for name in sorted(CHAT_PROMPT_FIELDS | TOOL_FIELDS):
        if fields.raw(name) is not None:
            refuse(name, "is allowed only with 'messages'.")
    texts = _texts(prompt, limits)
    return TokenizeCall(model, tuple(TextPrompt(text, special) for text in texts), single=isinstance(prompt, str))


def read_detokenize(body: dict[str, Any], limits: SchemaLimits) -> DetokenizeCall:
    """Reads a request of /v1/detokenize."""
    fields = Fields(body)
    fields.require_known(DETOKENIZE_FIELDS, {})
    value = fields.raw("tokens")
    if not isinstance(value, list):
        refuse("tokens", f"must be a list of token ids or a list of such lists, not {kind_of(value)}.")
    single = is_list_of(value, int)
    lists = [value] if single else value
    if len(lists) > limits.max_batch:
        refuse("tokens", f"holds {len(lists)} lists; 1..{limits.max_batch} are allowed.")
    require_size("tokens", sum(len(one) for one in lists if isinstance(one, list)), "tokens", limits)
    read = tuple(_ids("tokens" if single else f"tokens[{place}]", one) for place, one in enumerate(lists))
    return DetokenizeCall(
        fields.text("model", 1, 1024) or "", read, single, fields.boolean("skip_special_tokens", default=True)
    )


def _ids(field: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        refuse(field, f"must be a list of token ids, not {kind_of(value)}.")
    return token_ids(field, value) if value else ()


def _texts(prompt: object, limits: SchemaLimits) -> list[str]:
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        refuse("prompt", f"must be a text or a list of texts, not {kind_of(prompt)}.")
    if not 1 <= len(texts) <= limits.max_batch:
        refuse("prompt", f"holds {len(texts)} texts; 1..{limits.max_batch} are allowed.")
    require_size("prompt", sum(map(len, texts)), "characters", limits)
    return texts


def require_size(field: str, size: int, unit: str, limits: SchemaLimits) -> None:
    """Refuses more characters or tokens than one request may have."""
    if size > limits.max_tokenize_size:
        refuse(field, f"has {size} {unit}; at most {limits.max_tokenize_size} are allowed. Send less at a time.")
