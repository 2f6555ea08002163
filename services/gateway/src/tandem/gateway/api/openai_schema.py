"""Requests of /v1/chat/completions and /v1/completions, checked field by field."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from tandem.gateway.admission.wishes import priority_of
from tandem.gateway.api.chat_schema import CHAT_PROMPT_FIELDS, read_chat_prompt
from tandem.gateway.api.fields import Fields, Unsupported, is_list_of, kind_of, refuse, shown, token_ids
from tandem.gateway.api.hearing import heard
from tandem.gateway.api.sampling import (
    MAX_NEW_TOKENS,
    MAX_SEED,
    MAX_TOP_LOGPROBS,
    SAMPLING_FIELDS,
    read_sampling,
    schema_text,
)
from tandem.gateway.api.sglang_fields import OF_SGLANG, OF_SGLANG_CHATS, OF_SGLANG_COMPLETIONS
from tandem.gateway.api.tool_schema import TOOL_FIELDS, read_tool_use
from tandem.gateway.calls import Api, GenerateCall, IdsPrompt, Item, Prompt, TextPrompt
from tandem.gateway.text.speech import Parsers
from tandem.v1 import session_pb2

MAX_SESSION: Final = 4096
COMPLETION_DEFAULT_TOKENS: Final = 16
"""What OpenAI documents for /v1/completions."""

_COMMON: Final = SAMPLING_FIELDS | frozenset(
    [
        "model",
        "stream",
        "stream_options",
        "n",
        "seed",
        "max_tokens",
        "logprobs",
        "response_format",
        "min_tokens",
        "user",
        "prompt_cache_key",
        "priority",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
    ]
)
"""The last four are accepted and mean nothing here."""
CHAT_FIELDS: Final = (
    _COMMON
    | CHAT_PROMPT_FIELDS
    | TOOL_FIELDS
    | frozenset(["max_completion_tokens", "top_logprobs", "separate_reasoning", "stream_reasoning"])
)
COMPLETION_FIELDS: Final = _COMMON | {"prompt", "echo", "best_of"}

_UNSUPPORTED: Final = {
    "audio": Unsupported("Answers are text only."),
    "modalities": Unsupported("Answers are text only.", (["text"],)),
    "web_search_options": Unsupported("Leave it out."),
    "prediction": Unsupported("Leave it out."),
    **OF_SGLANG,
}


_ONLY_COMPLETIONS: Final = "Only /v1/completions has it."
_ONLY_CHATS: Final = "Only /v1/chat/completions has it."
CHAT_UNSUPPORTED: Final = _UNSUPPORTED | {
    "functions": Unsupported("Use 'tools'.", ([],)),
    "function_call": Unsupported("Use 'tool_choice'.", ("none", "auto")),
    "suffix": Unsupported("Put all of the text into 'messages'.", ("",)),
    "echo": Unsupported(_ONLY_COMPLETIONS, (False,)),
    "best_of": Unsupported(_ONLY_COMPLETIONS, (1,)),
    **OF_SGLANG_CHATS,
}
COMPLETION_UNSUPPORTED: Final = _UNSUPPORTED | {
    "tools": Unsupported(_ONLY_CHATS, ([],)),
    "tool_choice": Unsupported(_ONLY_CHATS, ("none", "auto")),
    "parallel_tool_calls": Unsupported(_ONLY_CHATS, (True, False)),
    "functions": Unsupported(_ONLY_CHATS, ([],)),
    "function_call": Unsupported(_ONLY_CHATS, ("none", "auto")),
    "reasoning_effort": Unsupported(_ONLY_CHATS),
    "suffix": Unsupported("No model here fills a gap; put all of the text into 'prompt'.", ("",)),
    **OF_SGLANG_COMPLETIONS,
}


@dataclass(frozen=True, slots=True)
class SchemaLimits:
    """Most that one request may ask for."""

    max_n: int
    max_batch: int
    max_tokenize_size: int = 1 << 20
    """Characters that /v1/tokenize takes in one request, and tokens that /v1/detokenize takes."""


def read_chat(body: dict[str, Any], limits: SchemaLimits, parsers: Parsers | None = None) -> GenerateCall:
    """Reads a request of /v1/chat/completions. parsers: what takes answers apart, if anything does."""
    fields = Fields(body)
    fields.require_known(CHAT_FIELDS, CHAT_UNSUPPORTED)
    most = fields.integer("max_completion_tokens", 1, MAX_NEW_TOKENS) or fields.integer("max_tokens", 1, MAX_NEW_TOKENS)
    prompt, sampling = read_chat_prompt(fields), _sampling(fields, most or 0)
    prompt, hearing = heard(
        prompt,
        sampling,
        read_tool_use(fields, prompt.calls),
        parsers,
        separate_reasoning=fields.boolean("separate_reasoning", default=True),
        stream_reasoning=fields.boolean("stream_reasoning", default=True),
    )
    item = Item(
        prompt,
        "messages",
        sampling,
        n=fields.integer("n", 1, limits.max_n) or 1,
        logprobs=_chat_logprobs(fields),
    )
    return replace(_call(Api.CHAT, fields, (item,)), hearing=hearing)


def read_completion(body: dict[str, Any], limits: SchemaLimits) -> GenerateCall:
    """Reads a request of /v1/completions."""
    fields = Fields(body)
    fields.require_known(COMPLETION_FIELDS, COMPLETION_UNSUPPORTED)
    sampling = _sampling(fields, fields.integer("max_tokens", 1, MAX_NEW_TOKENS) or 0)
    n = fields.integer("n", 1, limits.max_n) or 1
    best_of = fields.integer("best_of", 1, limits.max_n)
    if best_of not in (None, n):
        refuse("best_of", f"must be as 'n', which is {n}: all answers are returned. Use 'n' and choose yourself.")
    echo = fields.boolean("echo")
    top = fields.integer("logprobs", 0, MAX_TOP_LOGPROBS)
    logprobs = None if top is None else session_pb2.LogprobOptions(top=top, prompt=echo)
    if echo and logprobs is not None and fields.boolean("stream"):
        refuse("echo", "with 'logprobs' is answered whole only. Leave 'stream' or one of the two out.")
    prompts = read_prompts("prompt", fields.raw("prompt"), limits.max_batch)
    items = tuple(
        Item(
            prompt,
            "prompt",
            sampling,
            default_new_tokens=COMPLETION_DEFAULT_TOKENS,
            n=n,
            logprobs=logprobs,
            echo=echo,
        )
        for prompt in prompts
    )
    return _call(Api.COMPLETION, fields, items)


def read_prompts(field: str, value: object, max_batch: int) -> tuple[Prompt, ...]:
    """Reads a text, a list of texts, a list of token ids, or a list of those lists."""
    if value is None:
        refuse(field, "is missing. Give a text, a list of texts, a list of token ids, or a list of those lists.")
    if isinstance(value, str):
        return (_text_prompt(field, value),)
    if not isinstance(value, list):
        refuse(field, f"must be a text or a list, not {kind_of(value)}.")
    if not value:
        refuse(field, "is an empty list. Give at least one prompt.")
    if is_list_of(value, int):
        return (IdsPrompt(token_ids(field, value)),)
    if len(value) > max_batch:
        refuse(field, f"holds {len(value)} prompts; 1..{max_batch} are allowed. Split them over several requests.")
    return tuple(_batch_prompt(f"{field}[{place}]", one) for place, one in enumerate(value))


def _batch_prompt(field: str, value: object) -> Prompt:
    if isinstance(value, str):
        return _text_prompt(field, value)
    if not isinstance(value, list):
        refuse(field, f"must be a text or a list of token ids, not {kind_of(value)}.")
    return IdsPrompt(token_ids(field, value))


def _text_prompt(field: str, text: str) -> TextPrompt:
    if not text:
        refuse(field, "is empty. Give at least one character.")
    return TextPrompt(text)


def _call(api: Api, fields: Fields, items: tuple[Item, ...]) -> GenerateCall:
    stream = fields.boolean("stream")
    options = fields.object("stream_options")
    include_usage = continuous_usage = False
    if options is not None:
        if not stream:
            refuse("stream_options", "is allowed only with 'stream': true.")
        inner = Fields(options, "stream_options.")
        inner.require_known(frozenset({"include_usage", "continuous_usage_stats", "include_obfuscation"}), {})
        include_usage = inner.boolean("include_usage")
        continuous_usage = inner.boolean("continuous_usage_stats")
    return GenerateCall(
        api,
        fields.text("model", 1, 1024) or "",
        items,
        stream=stream,
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        session=_session(fields),
        priority=priority_of(fields.text("priority", 1, 16), "priority"),
    )


def _session(fields: Fields) -> str:
    """What OpenAI's clients give to be routed by, and before there was that, the user."""
    return fields.text("prompt_cache_key", 0, MAX_SESSION) or fields.text("user", 0, MAX_SESSION) or ""


def _sampling(fields: Fields, max_new_tokens: int) -> session_pb2.Sampling:
    sampling = read_sampling(fields, max_new_tokens=max_new_tokens, seed=fields.integer("seed", 0, MAX_SEED))
    sampling.min_new_tokens = fields.integer("min_tokens", 0, max_new_tokens or MAX_NEW_TOKENS) or 0
    schema = _response_schema(fields)
    if schema:
        sampling.json_schema = schema
    return sampling


def _response_schema(fields: Fields) -> str:
    """JSON schema that 'response_format' asks for, or empty."""
    wanted = fields.object("response_format")
    kind = None if wanted is None else wanted.get("type")
    if wanted is None or kind == "text":
        return ""
    if kind == "json_object":
        return '{"type": "object"}'
    if kind != "json_schema":
        refuse("response_format.type", f"must be 'text', 'json_object' or 'json_schema', not {shown(kind)}.")
    holder = wanted.get("json_schema")
    if not isinstance(holder, dict):
        refuse("response_format.json_schema", f"must be an object with a 'schema', not {kind_of(holder)}.")
    return schema_text("response_format.json_schema.schema", holder.get("schema"))


def _chat_logprobs(fields: Fields) -> session_pb2.LogprobOptions | None:
    wanted = fields.boolean("logprobs")
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not wanted:
        refuse("top_logprobs", "is allowed only with 'logprobs': true.")
    return session_pb2.LogprobOptions(top=top or 0) if wanted else None
