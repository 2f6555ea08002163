"""JSON schemas of every field that the HTTP API takes, with what it means: for /openapi.json and docs/api.md.

Requests are checked by the readers (openai_schema and its neighbours), which refuse by name and with advice. A test
holds these against the readers, value by value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tandem.core.fair_queue import Priority
from tandem.gateway.api import responses_schema, sampling
from tandem.gateway.api.chat_schema import EFFORTS, MAX_MESSAGES, MOST_EFFORT, RESERVED_TEMPLATE_OPTIONS, ROLES
from tandem.gateway.api.fields import Unsupported
from tandem.gateway.api.openai_schema import MAX_SESSION, SchemaLimits
from tandem.gateway.api.tool_schema import MAX_CALL_ID, MAX_CALLS, MAX_TOOL_NAME, MAX_TOOLS

Schema = dict[str, Any]
Fields = dict[str, Schema]

_MAX_TOKEN: Final = 2**31 - 1
_TOKEN: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": _MAX_TOKEN}
REFUSED: Final = "x-refused"
"""Marks a field that is known and not offered; null and the values of its `enum` ask for nothing, and so pass."""


def described(meaning: str, schema: Schema) -> Schema:
    """The schema of a field, which may be null, and what it means."""
    return {**nullable(schema), "description": meaning}


def nullable(schema: Schema) -> Schema:
    """The same, or null, which counts as absent everywhere."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return schema


def integer(low: int, high: int) -> Schema:
    """A whole number of this range."""
    return {"type": "integer", "minimum": low, "maximum": high}


def string(low: int, high: int) -> Schema:
    """A text of so many characters."""
    return {"type": "string", "minLength": low, "maxLength": high}


def list_of(items: Schema, low: int | None = None, high: int | None = None) -> Schema:
    """A list of so many of them."""
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
_IDS: Final[Schema] = {**list_of(_TOKEN, 1), "title": "token ids"}
_TEXT: Final[Schema] = {"type": "string", "minLength": 1}
UNUSED: Final[Schema] = {"description": "Taken, and means nothing here."}
MODEL: Final = described("The model; may be left out where one is served only.", string(1, 1024))
STREAM: Final = described("Whether the answer comes as server-sent events.", _BOOLEAN)

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
    return described(_NUMBERS[name], {"type": "number", low: span.low, "maximum": span.high})


_GRAMMAR: Final = string(0, sampling.MAX_GRAMMAR_CHARACTERS)
SAMPLING: Final[Fields] = {
    **{name: _number(name) for name in _NUMBERS},
    "top_k": described(
        "Only so many of the likeliest tokens; -1 = off.",
        {"anyOf": [{"const": -1}, integer(1, _MAX_TOKEN)]},
    ),
    "logit_bias": described(
        "Added to the logits of tokens, by token id.",
        {
            "title": f"object of -{sampling.MAX_BIAS}..{sampling.MAX_BIAS}, at most {sampling.MAX_LOGIT_BIAS}",
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": -sampling.MAX_BIAS, "maximum": sampling.MAX_BIAS},
            "maxProperties": sampling.MAX_LOGIT_BIAS,
        },
    ),
    "stop": described(
        "Texts that end the answer, and are left out of it.",
        {
            "anyOf": [
                string(1, sampling.MAX_STOP_CHARACTERS),
                list_of(string(1, sampling.MAX_STOP_CHARACTERS), None, sampling.MAX_STOPS),
            ]
        },
    ),
    "stop_token_ids": described("Tokens that end the answer.", list_of(_TOKEN, None, sampling.MAX_STOP_TOKENS)),
    "ignore_eos": described("Whether the end-of-text token does not end the answer.", _BOOLEAN),
    "skip_special_tokens": described("Whether special tokens are left out of the text; true by default.", _BOOLEAN),
    "json_schema": described(
        "The answer is JSON that fits this schema, given as an object or as its text.",
        {"anyOf": [_GRAMMAR, {"type": "object"}]},
    ),
    "regex": described("The answer matches this regular expression.", _GRAMMAR),
    "ebnf": described("The answer fits this grammar.", _GRAMMAR),
}

PART: Final[Schema] = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
CONTENT: Final[Schema] = {"anyOf": [{"type": "string"}, list_of(PART, 1)]}


_CALL: Final[Schema] = {
    "type": "object",
    "properties": {
        "id": nullable(string(0, MAX_CALL_ID)),
        "function": {
            "type": "object",
            "properties": {"name": string(1, MAX_TOOL_NAME), "arguments": {"type": ["string", "object"]}},
            "required": ["name", "arguments"],
        },
    },
    "required": ["function"],
}
_CALLS: Final[Schema] = list_of(_CALL, None, MAX_CALLS)


def _chat_messages() -> Schema:
    """Messages of OpenAI's chats: an assistant's may hold tool calls, and then no content; others answer them."""
    others = [role for role in ROLES if role not in ("assistant", "tool")]
    spoken: Fields = {"role": {"const": "assistant"}, "reasoning_content": {"type": ["string", "null"]}}
    call_id = nullable(string(0, MAX_CALL_ID))
    kinds: list[Schema] = [
        {"properties": {"role": {"enum": others}, "content": CONTENT}, "required": ["content"]},
        {"properties": {**spoken, "content": CONTENT, "tool_calls": nullable(_CALLS)}, "required": ["content"]},
        {
            "properties": {**spoken, "content": {"type": "null"}, "tool_calls": {**_CALLS, "minItems": 1}},
            "required": ["tool_calls"],
        },
        {
            "properties": {"role": {"const": "tool"}, "content": CONTENT, "tool_call_id": call_id},
            "required": ["content"],
        },
    ]
    message = {"title": "messages", "type": "object", "required": ["role"], "oneOf": kinds}
    return list_of(message, 1, MAX_MESSAGES)


_FUNCTION: Final[Schema] = {
    "type": "object",
    "properties": {
        "name": string(1, MAX_TOOL_NAME),
        "description": nullable(string(0, sampling.MAX_GRAMMAR_CHARACTERS)),
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
    "tools": described(
        "Functions that the model may call. Needs `TANDEM_GATEWAY_TOOL_CALL_PARSER`; without it 501 says so.",
        list_of(_TOOL, None, MAX_TOOLS),
    ),
    "tool_choice": described(
        "Whether the model is to call a tool, and which. `required` and a named one are enforced by a grammar.",
        {"anyOf": [_words(("none", "auto", "required")), _NAMED_TOOL]},
    ),
    "parallel_tool_calls": described("Whether an answer may hold several calls; true by default.", _BOOLEAN),
}


CHAT_PROMPT: Final[Fields] = {
    "messages": described("The chat so far.", _chat_messages()),
    "chat_template_kwargs": described(
        "Variables of the model's chat template.",
        {
            "type": "object",
            "propertyNames": {"not": {"enum": sorted(RESERVED_TEMPLATE_OPTIONS)}},
            "additionalProperties": {"type": ["string", "number", "boolean"]},
        },
    ),
    "reasoning_effort": described(
        "How much the model is to think: the variables `reasoning_effort`, `thinking` and `enable_thinking` of its chat"
        " template, of which the last two are false with `none`. Those of `chat_template_kwargs` go before them.",
        {"anyOf": [_words(EFFORTS), {"type": "number", "minimum": 0, "maximum": MOST_EFFORT}]},
    ),
    "continue_final_message": described("Whether the answer goes on with the last message, the assistant's.", _BOOLEAN),
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
        "stream": STREAM,
        "stream_options": described(
            "With `stream` only. `include_usage`: a last event with the token counts. `continuous_usage_stats`: those"
            " so far in every event.",
            closed(
                {
                    "include_usage": nullable(_BOOLEAN),
                    "continuous_usage_stats": nullable(_BOOLEAN),
                    "include_obfuscation": {},
                }
            ),
        ),
        "n": described("Answers wanted of each prompt; each runs by itself.", integer(1, limits.max_n)),
        "max_tokens": described("New tokens at most.", integer(1, sampling.MAX_NEW_TOKENS)),
        "min_tokens": described(
            "New tokens before the answer may end; at most `max_tokens`.", integer(0, sampling.MAX_NEW_TOKENS)
        ),
        "seed": described(
            "Makes sampling repeatable, where SGLang runs with enable_deterministic_inference.",
            integer(0, sampling.MAX_SEED),
        ),
        "response_format": described("The answer is JSON, of a given schema.", _RESPONSE_FORMAT),
        **SAMPLING,
        "prompt_cache_key": described(
            "Name of the session, for policies that keep one on its worker; the header `X-Session-Id` goes before it.",
            string(0, MAX_SESSION),
        ),
        "user": described("The same, where `prompt_cache_key` is not given.", string(0, MAX_SESSION)),
        "priority": described(
            "Class of priority, at most that of the key; the header `X-Request-Priority` goes before it.",
            {"type": "string", "enum": [*(one.value for one in Priority), None]},
        ),
        **dict.fromkeys(("metadata", "store", "service_tier", "safety_identifier"), UNUSED),
    }


def chat(limits: SchemaLimits) -> Fields:
    """Fields of /v1/chat/completions."""
    return {
        **CHAT_PROMPT,
        **TOOLS,
        "separate_reasoning": described(
            "Whether reasoning is told apart, as `reasoning_content`, where `TANDEM_GATEWAY_REASONING_PARSER` is set;"
            " true by default.",
            _BOOLEAN,
        ),
        "stream_reasoning": described(
            "Whether reasoning is streamed as it comes, or once it is complete; true by default.", _BOOLEAN
        ),
        **_openai_common(limits),
        "max_completion_tokens": described("As `max_tokens`, and goes before it.", integer(1, sampling.MAX_NEW_TOKENS)),
        "logprobs": described("Whether to return log probabilities.", _BOOLEAN),
        "top_logprobs": described(
            "With `logprobs` only: alternatives per token.", integer(0, sampling.MAX_TOP_LOGPROBS)
        ),
    }


def completion(limits: SchemaLimits) -> Fields:
    """Fields of /v1/completions."""
    one = {"anyOf": [_TEXT, _IDS]}
    return {
        "prompt": described(
            "A text, token ids, or a list of either.", {"anyOf": [_TEXT, _IDS, list_of(one, 1, limits.max_batch)]}
        ),
        **_openai_common(limits),
        "logprobs": described(
            "Returns log probabilities, with so many alternatives.", integer(0, sampling.MAX_TOP_LOGPROBS)
        ),
        "echo": described(
            "Whether the answer begins with the prompt; with `logprobs` it is scored too, and no `stream` is taken.",
            _BOOLEAN,
        ),
        "best_of": described("As `n`, or left out: every answer is returned.", integer(1, limits.max_n)),
    }


def _each(schema: Schema) -> Schema:
    """A value for all prompts, or a list with one for each."""
    return {"anyOf": [nullable(schema), list_of(nullable(schema), 1)]}


def generate_sampling(limits: SchemaLimits) -> Fields:
    """Fields of `sampling_params` of /generate."""
    return {
        "max_new_tokens": described("New tokens at most; 128 by default.", integer(1, sampling.MAX_NEW_TOKENS)),
        "min_new_tokens": described(
            "New tokens before the answer may end; at most `max_new_tokens`.", integer(0, sampling.MAX_NEW_TOKENS)
        ),
        "n": described("Answers wanted of each prompt.", integer(1, limits.max_n)),
        "sampling_seed": described(
            "Makes sampling repeatable, where SGLang runs with enable_deterministic_inference.",
            integer(0, sampling.MAX_SEED),
        ),
        **SAMPLING,
    }


def generate(limits: SchemaLimits, sampling_params: Schema) -> Fields:
    """Fields of /generate. sampling_params: schema of one object of them."""
    batch = limits.max_batch
    return {
        "text": described("A text or a list of texts.", {"anyOf": [_TEXT, list_of(_TEXT, 1, batch)]}),
        "input_ids": described("Token ids, or a list of such lists.", {"anyOf": [_IDS, list_of(_IDS, 1, batch)]}),
        "sampling_params": described("How tokens are chosen.", _each(sampling_params)),
        "stream": STREAM,
        "return_logprob": described("Whether to return log probabilities.", _each(_BOOLEAN)),
        "logprob_start_len": described(
            "First token of the prompt that is scored too; -1 = none.", _each(integer(-1, sampling.MAX_NEW_TOKENS))
        ),
        "top_logprobs_num": described("Alternatives per token.", _each(integer(0, sampling.MAX_TOP_LOGPROBS))),
        "return_text_in_logprobs": described("Whether tokens are given with their text.", _BOOLEAN),
        "rid": described("Your own name of the request.", {"anyOf": [string(1, 128), list_of(string(1, 128))]}),
        "model": MODEL,
        **dict.fromkeys(("log_metrics", "no_logs", "background"), UNUSED),
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
        "input": described(
            "A text, or items: messages, function calls, their outputs, reasoning.",
            {"anyOf": [_TEXT, list_of(items, 1, MAX_MESSAGES)]},
        ),
        "instructions": described("A system message before the chat, for this answer only.", {"type": "string"}),
        **{name: same[name] for name in responses_schema.SAME},
        "max_output_tokens": same["max_tokens"],
        "tools": described(same["tools"]["description"], list_of(tool, None, MAX_TOOLS)),
        "tool_choice": described(
            same["tool_choice"]["description"], {"anyOf": [_words(("none", "auto", "required")), named]}
        ),
        "text": described(
            "`format`: as `response_format` of a chat, with `schema` in it directly.", {"type": "object"}
        ),
        "reasoning": described("`effort`: as `reasoning_effort` of a chat.", {"type": "object"}),
        "previous_response_id": described(
            "The answer to go on from: its chat comes before `input`. 404 if it is not kept.",
            {**string(1, responses_schema.MAX_ID), "pattern": f"^{responses_schema.ID_PREFIX}"},
        ),
        "store": described("Whether the answer is kept, for a while; true by default.", _BOOLEAN),
        "metadata": described("Said again in the answer.", {"type": "object"}),
        "stream_options": described("Taken, and means nothing here.", {"type": "object"}),
        **dict.fromkeys(("service_tier", "safety_identifier"), UNUSED),
    }


def tokenize(limits: SchemaLimits) -> Fields:
    """Fields of /v1/tokenize."""
    text = {"type": "string", "maxLength": limits.max_tokenize_size}
    return {
        "model": MODEL,
        "prompt": described("A text or a list of texts.", {"anyOf": [text, list_of(text, 1, limits.max_batch)]}),
        **CHAT_PROMPT,
        **TOOLS,
        "add_special_tokens": described(
            "With `prompt` only: whether the tokenizer adds its own tokens; true by default.", _BOOLEAN
        ),
    }


def detokenize(limits: SchemaLimits) -> Fields:
    """Fields of /v1/detokenize."""
    ids = {**list_of(_TOKEN, None, limits.max_tokenize_size), "title": f"at most {limits.max_tokenize_size} token ids"}
    return {
        "model": MODEL,
        "tokens": described(
            "Token ids, or a list of such lists.", {"anyOf": [ids, list_of(ids, None, limits.max_batch)]}
        ),
        "skip_special_tokens": described("Whether special tokens are left out; true by default.", _BOOLEAN),
    }
