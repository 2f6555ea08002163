"""Requests of /generate, SGLang's own API, checked field by field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeVar

from tandem.gateway.api.fields import Fields, Unsupported, is_list_of, kind_of, refuse, token_ids
from tandem.gateway.api.openai_schema import SchemaLimits, read_prompts
from tandem.gateway.api.sampling import MAX_NEW_TOKENS, MAX_SEED, MAX_TOP_LOGPROBS, SAMPLING_FIELDS, read_sampling
from tandem.gateway.api.sglang_fields import OF_GENERATE
from tandem.gateway.calls import Api, GenerateCall, IdsPrompt, Item
from tandem.v1 import session_pb2

DEFAULT_NEW_TOKENS: Final = 128
"""SGLang's default of max_new_tokens."""

GENERATE_FIELDS: Final = frozenset(
    [
        "text",
        "input_ids",
        "sampling_params",
        "stream",
        "return_logprob",
        "logprob_start_len",
        "top_logprobs_num",
        "return_text_in_logprobs",
        "rid",
        "model",
        "log_metrics",
        "no_logs",
        "background",
    ]
)
"""`log_metrics`, `no_logs` and `background` are accepted and mean nothing here."""
GENERATE_SAMPLING_FIELDS: Final = SAMPLING_FIELDS | frozenset(
    ["max_new_tokens", "min_new_tokens", "n", "sampling_seed"]
)
GENERATE_SAMPLING_UNSUPPORTED: Final = {
    "stop_regex": Unsupported("Use 'stop'.", ([],)),
    "structural_tag": Unsupported("Use 'json_schema', 'regex' or 'ebnf'."),
    "custom_params": Unsupported("Leave it out.", ({},)),
    "no_stop_trim": Unsupported("Leave it out.", (False,)),
    "spaces_between_special_tokens": Unsupported("Leave it out.", (True,)),
    "stream_interval": Unsupported("Every token is sent at once.", (1,)),
}

T = TypeVar("T")


def read_generate(body: dict[str, Any], limits: SchemaLimits) -> GenerateCall:
    """Reads a request of /generate. A batch may give any parameter once, or as a list with one value per prompt."""
    fields = Fields(body)
    fields.require_known(GENERATE_FIELDS, OF_GENERATE)
    bare, single = _prompts(fields, limits)
    count = len(bare)
    sampled = _spread(fields, "sampling_params", count, lambda one, where: _sampling(one, where, limits))
    logprobs = _logprobs(fields, count)
    rids = _rids(fields, count)
    with_text = fields.boolean("return_text_in_logprobs")
    items = tuple(
        replace(
            item,
            sampling=sampling,
            default_new_tokens=DEFAULT_NEW_TOKENS,
            n=n,
            logprobs=logprobs[place],
            with_logprob_text=with_text,
            rid=rids[place],
        )
        for place, (item, (sampling, n)) in enumerate(zip(bare, sampled, strict=True))
    )
    return GenerateCall(
        Api.GENERATE,
        fields.text("model", 1, 1024) or "",
        items,
        stream=fields.boolean("stream"),
        single=single and items[0].n == 1,
    )


def _prompts(fields: Fields, limits: SchemaLimits) -> tuple[list[Item], bool]:
    """The prompts as items without parameters, and whether it is one rather than a batch."""
    text, ids = fields.raw("text"), fields.raw("input_ids")
    if (text is None) == (ids is None):
        refuse("text", "or 'input_ids' must be given, and not both.")
    if ids is not None:
        if not isinstance(ids, list) or not ids:
            refuse("input_ids", "must be a list of token ids, or a list of such lists; it may not be empty.")
        if is_list_of(ids, int):
            return [Item(IdsPrompt(token_ids("input_ids", ids)), "input_ids", session_pb2.Sampling())], True
        if not all(isinstance(one, list) for one in ids):
            refuse("input_ids", "must be a list of token ids, or a list of such lists.")
        prompts, name = read_prompts("input_ids", ids, limits.max_batch), "input_ids"
    else:
        if not isinstance(text, str) and not (isinstance(text, list) and all(isinstance(one, str) for one in text)):
            refuse("text", f"must be a text or a list of texts, not {kind_of(text)}.")
        prompts, name = read_prompts("text", text, limits.max_batch), "text"
    return [Item(prompt, name, session_pb2.Sampling()) for prompt in prompts], isinstance(text, str)


def _spread(fields: Fields, name: str, count: int, read: Callable[[Any, str], T]) -> list[T]:
    """One value for all prompts, or a list with one for each."""
    value = fields.raw(name)
    if not isinstance(value, list):
        return [read(value, name)] * count
    if len(value) != count:
        refuse(name, f"holds {len(value)} values for {count} prompts. Give one value, or one per prompt.")
    return [read(one, f"{name}[{place}]") for place, one in enumerate(value)]


def _sampling(value: object, where: str, limits: SchemaLimits) -> tuple[session_pb2.Sampling, int]:
    if value is not None and not isinstance(value, dict):
        refuse(where, f"must be an object, not {kind_of(value)}.")
    fields = Fields(value or {}, f"{where}.")
    fields.require_known(GENERATE_SAMPLING_FIELDS, GENERATE_SAMPLING_UNSUPPORTED)
    most = fields.integer("max_new_tokens", 1, MAX_NEW_TOKENS)
    sampling = read_sampling(fields, max_new_tokens=most or 0, seed=fields.integer("sampling_seed", 0, MAX_SEED))
    sampling.min_new_tokens = fields.integer("min_new_tokens", 0, most or DEFAULT_NEW_TOKENS) or 0
    return sampling, fields.integer("n", 1, limits.max_n) or 1


def _logprobs(fields: Fields, count: int) -> list[session_pb2.LogprobOptions | None]:
    wanted = _spread(fields, "return_logprob", count, lambda one, where: Fields({where: one}).boolean(where))
    tops = _spread(
        fields, "top_logprobs_num", count, lambda one, where: Fields({where: one}).integer(where, 0, MAX_TOP_LOGPROBS)
    )
    starts = _spread(
        fields, "logprob_start_len", count, lambda one, where: Fields({where: one}).integer(where, -1, MAX_NEW_TOKENS)
    )
    return [
        session_pb2.LogprobOptions(
            top=top or 0, prompt=start is not None and start >= 0, prompt_start=max(start or 0, 0)
        )
        if want
        else None
        for want, top, start in zip(wanted, tops, starts, strict=True)
    ]


def _rids(fields: Fields, count: int) -> list[str]:
    value = fields.raw("rid")
    if value is None:
        return [""] * count
    if isinstance(value, str) and count > 1:
        value = [f"{value}_{place}" for place in range(count)]
    names = value if isinstance(value, list) else [value]
    if len(names) != count or not all(isinstance(name, str) and 1 <= len(name) <= 128 for name in names):
        refuse("rid", f"must be a text of 1..128 characters, or a list of {count} of them.")
    return names
