"""JSON schemas of every field that the HTTP API takes, with what it means: for /openapi.json and docs/api.md.

Requests are checked by the readers (openai_schema and its neighbours), which refuse by name and with advice. A test
holds these against the readers, value by value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tandem.core.fair_queue import Priority
from tandem.gateway import messages_schema, responses_schema, sampling
from tandem.gateway.chat_schema import EFFORTS, MAX_MESSAGES, MOST_EFFORT, RESERVED_TEMPLATE_OPTIONS, ROLES
from tandem.gateway.fields import Unsupported
from tandem.gateway.openai_schema import MAX_SESSION, SchemaLimits
from tandem.gateway.tool_schema import MAX_CALL_ID, MAX_CALLS, MAX_TOOL_NAME, MAX_TOOLS

Schema = dict[str, Any]
Fields = dict[str, Schema]

_MAX_TOKEN: Final = 2**31 - 1
_TOKEN: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": _MAX_TOKEN}
REFUSED: Final = "x-refused"
"""Marks a field that is known and not offered; null and the values of its `enum` ask for nothing, and so pass."""


def _field(meaning: str, schema: Schema) -> Schema:
    return {**nullable(schema), "description": meaning}


def nullable(schema: Schema) -> Schema:
    """The same, or null, which counts as absent everywhere."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return schema


def _integer(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _string(low: int, high: int) -> Schema:
    return {"type": "string", "minLength": low, "maxLength": high}


def _list(items: Schema, low: int | None = None, high: int | None = None) -> Schema:
    bounds = {"minItems": low, "maxItems": high}
    return {"type": "array", "items": items, **{name: bound for name, bound in bounds.items() if bound is not None}}


def closed(fields: Mapping[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    """An object of these fields and no others; null passes as absent, but for those that are required."""
    properties = {name: _not_null(schema) if name in required else schema for name, schema in fields.items()}
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": {"type": "null"}}
    return {**schema, "required": list(required)} if required else schema


def _not_null(schema: Schema) -> Schema:
    if "anyOf" in schema:
        return {**schema, "anyOf": [one for one in schema["anyOf"] if one != {"type": "null"}]}
    return {**schema, "type": schema["type"][0]}


def refused(unsupported: Mapping[str, Unsupported]) -> Fields:
    """Schemas of fields that are known and not offered."""
    return {
        name: {"enum": [*one.harmless, None], "description": one.advice, REFUSED: True}
        for name, one in unsupported.items()
    }


_BOOLEAN: Final[Schema] = {"type": "boolean"}
_IDS: Final[Schema] = {**_list(_TOKEN, 1), "title": "token ids"}
_TEXT: Final[Schema] = {"type": "string", "minLength": 1}
_UNUSED: Final[Schema] = {"description": "Taken, and means nothing here."}
MODEL: Final = _field("The model; may be left out where one is served only.", _string(1, 1024))
_STREAM: Final = _field("Whether the answer comes as server-sent events.", _BOOLEAN)

_NUMBERS: Final = {
    "temperature": "0 = always the likeliest token.",
    "top_p": "Only the likeliest tokens that together have this probability.",
    "min_p": "Only tokens of at least this share of the likeliest one's probability.",
    "frequency_penalty": "Against tokens, the more often the answer has them.",
    "presence_penalty": "Against tokens that the answer has.",
    "repetition_penalty": "Divides the logits of tokens that prompt or answer have; 1 = off.",
}


def _number(name: str) -> Schema:
    span = sampling.NUMBERS[name]
    low = "exclusiveMinimum" if span.above_low else "minimum"
    return _field(_NUMBERS[name], {"type": "number", low: span.low, "maximum": span.high})


_GRAMMAR: Final = _string(0, sampling.MAX_GRAMMAR_CHARACTERS)
SAMPLING: Final[Fields] = {
    **{name: _number(name) for name in _NUMBERS},
    "top_k": _field(
        "Only so many of the likeliest tokens; -1 = off.",
        {"anyOf": [{"const": -1}, _integer(1, _MAX_TOKEN)]},
    ),
    "logit_bias": _field(
        "Added to the logits of tokens, by token id.",
        {
            "title": f"object of -{sampling.MAX_BIAS}..{sampling.MAX_BIAS}, at most {sampling.MAX_LOGIT_BIAS}",
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": -sampling.MAX_BIAS, "maximum": sampling.MAX_BIAS},
            "maxProperties": sampling.MAX_LOGIT_BIAS,
        },
    ),
    "stop": _field(
        "Texts that end the answer, and are left out of it.",
        {
            "anyOf": [
                _string(1, sampling.MAX_STOP_CHARACTERS),
                _list(_string(1, sampling.MAX_STOP_CHARACTERS), None, sampling.MAX_STOPS),
            ]
        },
    ),
    "stop_token_ids": _field("Tokens that end the answer.", _list(_TOKEN, None, sampling.MAX_STOP_TOKENS)),
    "ignore_eos": _field("Whether the end-of-text token does not end the answer.", _BOOLEAN),
    "skip_special_tokens": _field("Whether special tokens are left out of the text; true by default.", _BOOLEAN),
    "json_schema": _field(
        "The answer is JSON that fits this schema, given as an object or as its text.",
        {"anyOf": [_GRAMMAR, {"type": "object"}]},
    ),
    "regex": _field("The answer matches this regular expression.", _GRAMMAR),
    "ebnf": _field("The answer fits this grammar.", _GRAMMAR),
}

_PART: Final[Schema] = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_CONTENT: Final[Schema] = {"anyOf": [{"type": "string"}, _list(_PART, 1)]}


def _messages(roles: tuple[str, ...]) -> Schema:
    message = {
        "title": "messages",
        "type": "object",
        "properties": {"role": {"enum": list(roles)}, "content": _CONTENT},
        "required": ["role", "content"],
    }
    return _list(message, 1, MAX_MESSAGES)


_CALL: Final[Schema] = {
    "type": "object",
    "properties": {
        "id": nullable(_string(0, MAX_CALL_ID)),
        "function": {
            "type": "object",
            "properties": {"name": _string(1, MAX_TOOL_NAME), "arguments": {"type": ["string", "object"]}},
            "required": ["name", "arguments"],
        },
    },
    "required": ["function"],
}
_CALLS: Final[Schema] = _list(_CALL, None, MAX_CALLS)


def _chat_messages() -> Schema:
    """Messages of OpenAI's chats: an assistant's may hold tool calls, and then no content; others answer them."""
    others = [role for role in ROLES if role not in ("assistant", "tool")]
    spoken: Fields = {"role": {"const": "assistant"}, "reasoning_content": {"type": ["string", "null"]}}
    call_id = nullable(_string(0, MAX_CALL_ID))
    kinds: list[Schema] = [
        {"properties": {"role": {"enum": others}, "content": _CONTENT}, "required": ["content"]},
        {"properties": {**spoken, "content": _CONTENT, "tool_calls": nullable(_CALLS)}, "required": ["content"]},
        {
            "properties": {**spoken, "content": {"type": "null"}, "tool_calls": {**_CALLS, "minItems": 1}},
            "required": ["tool_calls"],
        },
        {
            "properties": {"role": {"const": "tool"}, "content": _CONTENT, "tool_call_id": call_id},
            "required": ["content"],
        },
    ]
    message = {"title": "messages", "type": "object", "required": ["role"], "oneOf": kinds}
    return _list(message, 1, MAX_MESSAGES)


_FUNCTION: Final[Schema] = {
    "type": "object",
    "properties": {
        "name": _string(1, MAX_TOOL_NAME),
        "description": nullable(_string(0, sampling.MAX_GRAMMAR_CHARACTERS)),
        "parameters": {"type": ["object", "null"], "description": "A JSON schema."},
        "strict": {"type": ["boolean", "null"], "description": "Whether arguments are held to `parameters`."},
    },
    "required": ["name"],
}
_TOOL: Final[Schema] = {
    "title": '`{"type": "function", "function": {"name": "f", "parameters": {}}}`',
    "type": "object",
    "properties": {"type": {"const": "function"}, "function": _FUNCTION},
    "required": ["type", "function"],
}
_NAMED_TOOL: Final[Schema] = {
    "title": '`{"type": "function", "function": {"name": "f"}}`',
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
    "required": ["type", "function"],
}


def _words(words: tuple[str, ...]) -> Schema:
    return {"title": ", ".join(f'`"{word}"`' for word in words), "enum": list(words)}


TOOLS: Final[Fields] = {
    "tools": _field(
        "Functions that the model may call. Needs `TANDEM_GATEWAY_TOOL_CALL_PARSER`; without it 501 says so.",
        _list(_TOOL, None, MAX_TOOLS),
    ),
    "tool_choice": _field(
        "Whether the model is to call a tool, and which. `required` and a named one are enforced by a grammar.",
        {"anyOf": [_words(("none", "auto", "required")), _NAMED_TOOL]},
    ),
    "parallel_tool_calls": _field("Whether an answer may hold several calls; true by default.", _BOOLEAN),
}


CHAT_PROMPT: Final[Fields] = {
    "messages": _field("The chat so far.", _chat_messages()),
    "chat_template_kwargs": _field(
        "Variables of the model's chat template.",
        {
            "type": "object",
            "propertyNames": {"not": {"enum": sorted(RESERVED_TEMPLATE_OPTIONS)}},
            "additionalProperties": {"type": ["string", "number", "boolean"]},
        },
    ),
    "reasoning_effort": _field(
        "How much the model is to think: the variables `reasoning_effort`, `thinking` and `enable_thinking` of its chat"
        " template, of which the last two are false with `none`. Those of `chat_template_kwargs` go before them.",
        {"anyOf": [_words(EFFORTS), {"type": "number", "minimum": 0, "maximum": MOST_EFFORT}]},
    ),
    "continue_final_message": _field("Whether the answer goes on with the last message, the assistant's.", _BOOLEAN),
}
_RESPONSE_FORMAT: Final[Schema] = {
    "anyOf": [
        {
            "title": '`{"type": "text"}` or `{"type": "json_object"}`',
            "type": "object",
            "properties": {"type": {"enum": ["text", "json_object"]}},
            "required": ["type"],
        },
        {
            "title": '`{"type": "json_schema", "json_schema": {"schema": {}}}`',
            "type": "object",
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "properties": {"schema": {"type": "object"}},
                    "required": ["schema"],
                },
            },
            "required": ["type", "json_schema"],
        },
    ]
}


_ITEMS: Final = ("message", "function_call", "function_call_output", "reasoning")


def _openai_common(limits: SchemaLimits) -> Fields:
    return {
        "model": MODEL,
        "stream": _STREAM,
        "stream_options": _field(
            "With `stream` only. `include_usage`: a last event with the token counts.",
            closed({"include_usage": nullable(_BOOLEAN), "include_obfuscation": {}}),
        ),
        "n": _field("Answers wanted of each prompt; each runs by itself.", _integer(1, limits.max_n)),
        "max_tokens": _field("New tokens at most.", _integer(1, sampling.MAX_NEW_TOKENS)),
        "min_tokens": _field(
            "New tokens before the answer may end; at most `max_tokens`.", _integer(0, sampling.MAX_NEW_TOKENS)
        ),
        "seed": _field(
            "Makes sampling repeatable, where SGLang runs with enable_deterministic_inference.",
            _integer(0, sampling.MAX_SEED),
        ),
        "response_format": _field("The answer is JSON, of a given schema.", _RESPONSE_FORMAT),
        **SAMPLING,
        "prompt_cache_key": _field(
            "Name of the session, for policies that keep one on its worker; the header `X-Session-Id` goes before it.",
            _string(0, MAX_SESSION),
        ),
        "user": _field("The same, where `prompt_cache_key` is not given.", _string(0, MAX_SESSION)),
        "priority": _field(
            "Class of priority, at most that of the key; the header `X-Request-Priority` goes before it.",
            {"type": "string", "enum": [*(one.value for one in Priority), None]},
        ),
        **dict.fromkeys(("metadata", "store", "service_tier", "safety_identifier"), _UNUSED),
    }


def chat(limits: SchemaLimits) -> Fields:
    """Fields of /v1/chat/completions."""
    return {
        **CHAT_PROMPT,
        **TOOLS,
        "separate_reasoning": _field(
            "Whether reasoning is told apart, as `reasoning_content`, where `TANDEM_GATEWAY_REASONING_PARSER` is set;"
            " true by default.",
            _BOOLEAN,
        ),
        "stream_reasoning": _field(
            "Whether reasoning is streamed as it comes, or once it is complete; true by default.", _BOOLEAN
        ),
        **_openai_common(limits),
        "max_completion_tokens": _field("As `max_tokens`, and goes before it.", _integer(1, sampling.MAX_NEW_TOKENS)),
        "logprobs": _field("Whether to return log probabilities.", _BOOLEAN),
        "top_logprobs": _field("With `logprobs` only: alternatives per token.", _integer(0, sampling.MAX_TOP_LOGPROBS)),
    }


def completion(limits: SchemaLimits) -> Fields:
    """Fields of /v1/completions."""
    one = {"anyOf": [_TEXT, _IDS]}
    return {
        "prompt": _field(
            "A text, token ids, or a list of either.", {"anyOf": [_TEXT, _IDS, _list(one, 1, limits.max_batch)]}
        ),
        **_openai_common(limits),
        "logprobs": _field(
            "Returns log probabilities, with so many alternatives.", _integer(0, sampling.MAX_TOP_LOGPROBS)
        ),
        "echo": _field(
            "Whether the answer begins with the prompt; with `logprobs` it is scored too, and no `stream` is taken.",
            _BOOLEAN,
        ),
        "best_of": _field("As `n`, or left out: every answer is returned.", _integer(1, limits.max_n)),
    }


def _each(schema: Schema) -> Schema:
    """A value for all prompts, or a list with one for each."""
    return {"anyOf": [nullable(schema), _list(nullable(schema), 1)]}


def generate_sampling(limits: SchemaLimits) -> Fields:
    """Fields of `sampling_params` of /generate."""
    return {
        "max_new_tokens": _field("New tokens at most; 128 by default.", _integer(1, sampling.MAX_NEW_TOKENS)),
        "min_new_tokens": _field(
            "New tokens before the answer may end; at most `max_new_tokens`.", _integer(0, sampling.MAX_NEW_TOKENS)
        ),
        "n": _field("Answers wanted of each prompt.", _integer(1, limits.max_n)),
        "sampling_seed": _field(
            "Makes sampling repeatable, where SGLang runs with enable_deterministic_inference.",
            _integer(0, sampling.MAX_SEED),
        ),
        **SAMPLING,
    }


def generate(limits: SchemaLimits, sampling_params: Schema) -> Fields:
    """Fields of /generate. sampling_params: schema of one object of them."""
    batch = limits.max_batch
    return {
        "text": _field("A text or a list of texts.", {"anyOf": [_TEXT, _list(_TEXT, 1, batch)]}),
        "input_ids": _field("Token ids, or a list of such lists.", {"anyOf": [_IDS, _list(_IDS, 1, batch)]}),
        "sampling_params": _field("How tokens are chosen.", _each(sampling_params)),
        "stream": _STREAM,
        "return_logprob": _field("Whether to return log probabilities.", _each(_BOOLEAN)),
        "logprob_start_len": _field(
            "First token of the prompt that is scored too; -1 = none.", _each(_integer(-1, sampling.MAX_NEW_TOKENS))
        ),
        "top_logprobs_num": _field("Alternatives per token.", _each(_integer(0, sampling.MAX_TOP_LOGPROBS))),
        "return_text_in_logprobs": _field("Whether tokens are given with their text.", _BOOLEAN),
        "rid": _field("Your own name of the request.", {"anyOf": [_string(1, 128), _list(_string(1, 128))]}),
        "model": MODEL,
        **dict.fromkeys(("log_metrics", "no_logs", "background"), _UNUSED),
    }


def responses(limits: SchemaLimits) -> Fields:
    """Fields of /v1/responses."""
    same = chat(limits)
    function: Schema = {**_FUNCTION, "properties": {"type": {"const": "function"}, **_FUNCTION["properties"]}}
    tool: Schema = {**function, "title": '`{"type": "function", "name": "f", "parameters": {}}`'}
    named: Schema = {
        "title": '`{"type": "function", "name": "f"}`',
        "type": "object",
        "properties": {"type": {"const": "function"}, "name": {"type": "string"}},
        "required": ["type", "name"],
    }
    items: Schema = {"title": "items", "type": "object", "properties": {"type": {"enum": list(_ITEMS)}}}
    tool["required"] = ["type", "name"]
    return {
        "input": _field(
            "A text, or items: messages, function calls, their outputs, reasoning.",
            {"anyOf": [_TEXT, _list(items, 1, MAX_MESSAGES)]},
        ),
        "instructions": _field("A system message before the chat, for this answer only.", {"type": "string"}),
        **{name: same[name] for name in responses_schema.SAME},
        "max_output_tokens": same["max_tokens"],
        "tools": _field(same["tools"]["description"], _list(tool, None, MAX_TOOLS)),
        "tool_choice": _field(
            same["tool_choice"]["description"], {"anyOf": [_words(("none", "auto", "required")), named]}
        ),
        "text": _field("`format`: as `response_format` of a chat, with `schema` in it directly.", {"type": "object"}),
        "reasoning": _field("`effort`: as `reasoning_effort` of a chat.", {"type": "object"}),
        "previous_response_id": _field(
            "The answer to go on from: its chat comes before `input`. 404 if it is not kept.",
            _string(1, responses_schema.MAX_ID),
        ),
        "store": _field("Whether the answer is kept, for a while; true by default.", _BOOLEAN),
        "metadata": _field("Said again in the answer.", {"type": "object"}),
        "stream_options": _field("Taken, and means nothing here.", {"type": "object"}),
        **dict.fromkeys(("service_tier", "safety_identifier"), _UNUSED),
    }


def count() -> Fields:
    """Fields of /v1/messages/count_tokens."""
    return {
        "model": MODEL,
        "messages": _field(
            "The chat so far. An assistant's message at the end is the beginning of the answer.",
            _messages(messages_schema.ROLES),
        ),
        "system": _field("What comes before the chat.", _CONTENT),
        "cache_control": _UNUSED,
    }


def messages() -> Fields:
    """Fields of /v1/messages."""
    return {
        **count(),
        "max_tokens": _field("New tokens at most; needed.", _integer(1, sampling.MAX_NEW_TOKENS)),
        "stream": _STREAM,
        "stop_sequences": SAMPLING["stop"],
        **{name: SAMPLING[name] for name in ("temperature", "top_p", "top_k")},
        **dict.fromkeys(("metadata", "service_tier"), _UNUSED),
    }


def tokenize(limits: SchemaLimits) -> Fields:
    """Fields of /v1/tokenize."""
    text = {"type": "string", "maxLength": limits.max_tokenize_size}
    return {
        "model": MODEL,
        "prompt": _field("A text or a list of texts.", {"anyOf": [text, _list(text, 1, limits.max_batch)]}),
        **CHAT_PROMPT,
        **TOOLS,
        "add_special_tokens": _field(
            "With `prompt` only: whether the tokenizer adds its own tokens; true by default.", _BOOLEAN
        ),
    }


def detokenize(limits: SchemaLimits) -> Fields:
    """Fields of /v1/detokenize."""
    ids = {**_list(_TOKEN, None, limits.max_tokenize_size), "title": f"at most {limits.max_tokenize_size} token ids"}
    return {
        "model": MODEL,
        "tokens": _field("Token ids, or a list of such lists.", {"anyOf": [ids, _list(ids, None, limits.max_batch)]}),
        "skip_special_tokens": _field("Whether special tokens are left out; true by default.", _BOOLEAN),
    }
