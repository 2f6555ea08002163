"""Sampling parameters: the same fields and ranges in every API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson

from tandem.gateway.api.fields import Fields, kind_of, refuse
from tandem.v1 import session_pb2

MAX_NEW_TOKENS: Final = 1 << 20
MAX_STOPS: Final = 16
MAX_STOP_CHARACTERS: Final = 1024
MAX_STOP_TOKENS: Final = 64
MAX_GRAMMAR_CHARACTERS: Final = 64 * 1024
MAX_TOP_LOGPROBS: Final = 128
MAX_SEED: Final = 2**63 - 1
MAX_LOGIT_BIAS: Final = 1024
MAX_BIAS: Final = 100

SAMPLING_FIELDS: Final = frozenset(
    [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "json_schema",
        "regex",
        "ebnf",
        "skip_special_tokens",
        "logit_bias",
    ]
)
"""Fields that `read_sampling` takes; the rest is named differently from API to API."""


@dataclass(frozen=True, slots=True)
class Number:
    """Range of one optional number."""

    low: float
    high: float
    above_low: bool = False


NUMBERS: Final = {
    "temperature": Number(0, 2),
    "top_p": Number(0, 1, above_low=True),
    "min_p": Number(0, 1),
    "frequency_penalty": Number(-2, 2),
    "presence_penalty": Number(-2, 2),
    "repetition_penalty": Number(0, 2, above_low=True),
}


def read_sampling(fields: Fields, *, max_new_tokens: int, seed: int | None) -> session_pb2.Sampling:
    """Reads the fields that all APIs share. max_new_tokens 0 = to be settled once the prompt's length is known."""
    sampling = session_pb2.Sampling(
        max_new_tokens=max_new_tokens,
        stop=fields.texts("stop", MAX_STOPS, MAX_STOP_CHARACTERS),
        stop_token_ids=_stop_tokens(fields),
        ignore_eos=fields.boolean("ignore_eos"),
        skip_special_tokens=fields.boolean("skip_special_tokens", default=True),
        regex=fields.text("regex", 0, MAX_GRAMMAR_CHARACTERS) or "",
        ebnf=fields.text("ebnf", 0, MAX_GRAMMAR_CHARACTERS) or "",
        json_schema=_json_schema(fields),
        logit_bias=_logit_bias(fields),
    )
    for name, span in NUMBERS.items():
        value = fields.number(name, span.low, span.high, above_low=span.above_low)
        if value is not None:
            setattr(sampling, name, value)
    top_k = fields.raw("top_k")
    if top_k is not None and (type(top_k) is not int or not (top_k == -1 or 1 <= top_k < 2**31)):
        refuse(fields.path("top_k"), f"must be -1 (off) or a whole number of 1..{2**31 - 1}, not {top_k!r:.40}.")
    if top_k is not None:
        sampling.top_k = top_k
    if seed is not None:
        sampling.seed = seed
    if sum(map(bool, (sampling.regex, sampling.ebnf, sampling.json_schema))) > 1:
        refuse(fields.path("regex"), "cannot be combined with 'json_schema' or 'ebnf'. Give one grammar only.")
    return sampling


def _stop_tokens(fields: Fields) -> list[int]:
    value = fields.raw("stop_token_ids")
    if value is None:
        return []
    fits = isinstance(value, list) and len(value) <= MAX_STOP_TOKENS
    if not fits or not all(type(token) is int and 0 <= token < 2**31 for token in value):
        refuse(fields.path("stop_token_ids"), f"must be a list of at most {MAX_STOP_TOKENS} token ids.")
    return list(value)


def _logit_bias(fields: Fields) -> dict[int, float]:
    """Token to what is added to its logit. That each is in the vocabulary is checked where the vocabulary is."""
    value = fields.object("logit_bias") or {}
    if len(value) > MAX_LOGIT_BIAS:
        refuse(fields.path("logit_bias"), f"holds {len(value)} tokens; at most {MAX_LOGIT_BIAS} are allowed.")
    inner = Fields(value, f"{fields.path('logit_bias')}.")
    biases: dict[int, float] = {}
    for name in value:
        if not (name.isascii() and name.isdecimal() and len(name) <= 10 and int(name) < 2**31):
            refuse(inner.path(name[:40]), f"must have a token id of 0..{2**31 - 1} as its name.")
        bias = inner.number(name, -MAX_BIAS, MAX_BIAS)
        if bias is None:
            refuse(inner.path(name), f"must be a number of -{MAX_BIAS}..{MAX_BIAS}, not null.")
        biases[int(name)] = bias
    return biases


def _json_schema(fields: Fields) -> str:
    value = fields.raw("json_schema")
    if isinstance(value, dict):
        return schema_text(fields.path("json_schema"), value)
    return fields.text("json_schema", 0, MAX_GRAMMAR_CHARACTERS) or ""


def schema_text(field: str, schema: object) -> str:
    """A JSON schema as text. Refuses what is no object, or too long."""
    if not isinstance(schema, dict):
        refuse(field, f"must be a JSON schema (an object), not {kind_of(schema)}.")
    text = orjson.dumps(schema).decode()
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        refuse(field, f"is {len(text)} characters long; at most {MAX_GRAMMAR_CHARACTERS} are allowed.")
    return text
