"""Requests as SGLang takes them, and its answers as Deltas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from tandem.core.errors import ErrorReason
from tandem.core.ids import PAIR, Role, RoomId
from tandem.core.room.events import Why
from tandem.engine.port import Delta, Finish, FinishKind, Job, LogprobOptions, Sampling, TokenLogprob
from tandem.engine.sglang import tags

SAMPLING_NAMES: Final[dict[str, str]] = {
    "max_new_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repetition_penalty",
    "stop": "stop",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
    "seed": "sampling_seed",
    "min_new_tokens": "min_new_tokens",
    "json_schema": "json_schema",
    "regex": "regex",
    "ebnf": "ebnf",
    "skip_special_tokens": "skip_special_tokens",
    "logit_bias": "logit_bias",
    "structural_tag": "structural_tag",
}
"""Our name of each field of Sampling that SGLang's sampling parameters have, and theirs."""

REASON_OF_STATUS: Final[dict[int, ErrorReason]] = {
    HTTPStatus.BAD_REQUEST: ErrorReason.INVALID_ARGUMENT,
    HTTPStatus.SERVICE_UNAVAILABLE: ErrorReason.POOL_EXHAUSTED,
}
EARLY_FIRST_TOKEN: Final = "tandem_early_first_token"
"""Name under which SGLang carries Job.early_first_token to hooks.say_first_token."""
BOOTSTRAP_HOST: Final = "tandem"
"""SGLang wants to know where prefill's bootstrap server is; nobody ever dials this."""


def rid_of(room: RoomId) -> str:
    """A room as SGLang's request id: of equal length for all, since SGLang aborts by prefix."""
    return f"{room:016x}"


def sampling_params(sampling: Sampling) -> dict[str, Any]:
    """Sampling as SGLang takes it; what is not set is left to its defaults."""
    params = {theirs: getattr(sampling, ours) for ours, theirs in SAMPLING_NAMES.items()}
    # SGLang's keys are texts, as in JSON.
    params["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias} or None
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in params.items()}
    return {name: value for name, value in plain.items() if value is not None and value not in ("", [])}


def request_of(job: Job, role: Role) -> dict[str, Any]:
    """Keyword arguments of sglang.Engine.async_generate for one leg."""
    request: dict[str, Any] = {
        "rid": rid_of(job.room),
        "input_ids": job.input_ids,
        "sampling_params": sampling_params(job.sampling) | marks(job, role),
        "stream": True,
    }
    if job.sampling.reasoning_first:
        request["require_reasoning"] = True
    if role in PAIR:
        request |= {"bootstrap_host": BOOTSTRAP_HOST, "bootstrap_room": job.room}
    if job.logprobs is not None:
        request["return_logprob"] = True
        request["top_logprobs_num"] = job.logprobs.top
        request["logprob_start_len"] = prompt_start(job.logprobs, role)
    return request


def marks(job: Job, role: Role) -> dict[str, Any]:
    """What our hooks in SGLang's scheduler want to know of a request; SGLang hands it through."""
    early = role is Role.PREFILL and job.early_first_token
    return {"custom_params": {EARLY_FIRST_TOKEN: True}} if early else {}


def prompt_start(options: LogprobOptions, role: Role) -> int:
    """First prompt position to score; decode never sees the prompt."""
    return options.prompt_start if options.prompt and role is not Role.DECODE else -1


def delta_of(job: Job, role: Role, answer: Mapping[str, Any]) -> Delta:
    """One answer of SGLang's incremental stream as a Delta, with a Finish if it is the last."""
    meta = answer["meta_info"]
    end = meta.get("finish_reason")
    finish = None if end is None else finish_of(role, meta, end)
    if finish is not None and finish.kind is FinishKind.FAILED:
        # SGLang repeats tokens that were sent already when it reports an abort.
        return Delta(job.room, finish=finish)
    if role is Role.PREFILL:
        if finish is None:
            return Delta(job.room, token_ids=tuple(answer["output_ids"]), text=answer.get("text") or "")
        return Delta(job.room, prompt_logprobs=_of_prompt(job, meta), finish=finish)
    # SGLang repeats what it says of the prompt with every answer.
    first = role is Role.UNIFIED and meta["completion_tokens"] == len(answer["output_ids"])
    return Delta(
        job.room,
        token_ids=tuple(answer["output_ids"]),
        text=answer.get("text") or "",
        logprobs=token_logprobs(meta, "output") if job.logprobs is not None else (),
        prompt_logprobs=_of_prompt(job, meta) if first else (),
        finish=finish,
    )


def _of_prompt(job: Job, meta: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    return token_logprobs(meta, "input") if job.logprobs is not None and job.logprobs.prompt else ()


def token_logprobs(meta: Mapping[str, Any], side: str) -> tuple[TokenLogprob, ...]:
    """SGLang's (logprob, token, text) triples of one side, "input" or "output", with their alternatives."""
    tokens: Sequence[Any] = meta.get(f"{side}_token_logprobs") or ()
    tops: Sequence[Any] = meta.get(f"{side}_top_logprobs") or [None] * len(tokens)
    return tuple(
        TokenLogprob(int(token), logprob, tuple((int(other), float(value)) for value, other, _ in top or ()))
        for (logprob, token, _), top in zip(tokens, tops, strict=True)
    )


def finish_of(role: Role, meta: Mapping[str, Any], end: Mapping[str, Any]) -> Finish:
    """SGLang's finish reason as a Finish."""
    matched = end.get("matched")
    kind, why = FinishKind.LENGTH, None
    if end["type"] == "abort":
        kind, why = FinishKind.FAILED, why_of(end)
    elif role is Role.PREFILL:
        kind = FinishKind.HANDED_OVER
    elif end["type"] == "stop":
        kind = FinishKind.STOP
    return Finish(
        kind,
        prompt_tokens=meta.get("prompt_tokens", 0),
        completion_tokens=meta.get("completion_tokens", 0),
        cached_tokens=meta.get("cached_tokens", 0),
        matched_text=matched if isinstance(matched, str) else "",
        matched_token_id=matched if isinstance(matched, int) else None,
        why=why,
    )


def why_of(end: Mapping[str, Any]) -> Why:
    """Why SGLang aborted a request: our own reason where a room failed, else what its status says."""
    message = str(end.get("message") or "aborted")
    if found := tags.read(message):
        return found
    status = end.get("status_code")
    if status is None:
        return Why(ErrorReason.CANCELLED, message)
    return Why(REASON_OF_STATUS.get(int(status), ErrorReason.ENGINE_FAILED), message)
