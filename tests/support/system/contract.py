"""Requests made from the OpenAPI document, good ones and bad ones, and what every answer has to keep to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks

from tandem.core.errors import CATALOGUE, ErrorReason

SEED = 20_261_128
TIMEOUT_S = 60
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
REFUSED_BY_SIZE = 413
"""How a body that is too large is refused; schemathesis does not count that as refused."""
SHORT = {"max_tokens": 9, "max_new_tokens": 9, "max_completion_tokens": 9, "max_output_tokens": 9}
NOT_OF_THE_MOCK = (
    *("json_schema", "regex", "ebnf", "response_format", "logit_bias"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "tools", "tool_choice", "text"),
)
TIED = ("min_tokens", "min_new_tokens", "top_logprobs", "stream_options", "best_of", "continue_final_message")
"""Fields that only go with others, which a JSON schema does not say."""
PER_PROMPT = ("sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num", "rid")
"""Fields of /generate that are lists as long as that of the prompts, or no lists."""
ONE_OF = (("input_ids", "text"), ("prompt", "messages"))
"""Fields of which only one may be given."""


def operations(url: str) -> Iterator[APIOperation[Any, Any, Any]]:
    """Those of the document that a gateway serves."""
    for result in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        yield result.ok()


@dataclass
class Tried:
    """What came of the requests to one operation."""

    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        """How many there were."""
        return self.statuses.total()


def try_operation(operation: APIOperation[Any, Any, Any], mode: GenerationMode, examples: int, model: str) -> Tried:
    """Sends generated requests, the same ones each time. Raises where an answer breaks the document.

    model: what good requests ask for; so they are mostly answered, and not refused for what no schema can say.
    """
    tried = Tried()

    @seed(SEED)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Case) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            _tame(case.body, model)
        response = case.call(timeout=TIMEOUT_S)
        tried.statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400:
            _require_reason(response)
        if mode is GenerationMode.NEGATIVE and response.status_code != REFUSED_BY_SIZE:
            case.validate_response(response, checks=[checks.negative_data_rejection])

    send()
    return tried


def _tame(body: dict[str, Any], model: str) -> None:
    """Makes a good body one that this system answers, and soon."""
    if "model" in body:
        body["model"] = model
    if "input_ids" in body or "text" in body or "sampling_params" in body:
        body["input_ids"] = [1, 2, 3]
        for name in [name for name in PER_PROMPT if isinstance(body.get(name), list)]:
            del body[name]
    for first, second in ONE_OF:
        if body.get(first) is not None:
            body.pop(second, None)
    params = body.get("sampling_params")
    for part in (body, *(params if isinstance(params, list) else [params])):
        if isinstance(part, dict):
            for name in (*NOT_OF_THE_MOCK, *TIED):
                part.pop(name, None)
            part.update({name: most for name, most in SHORT.items() if (part.get(name) or 0) > most})


def _require_reason(response: schemathesis.Response) -> None:
    """An error has a reason of the catalogue, and the status that goes with it; 5xx only where something is away."""
    code = response.json()["error"]["code"]
    reason = ErrorReason(code.upper())
    assert CATALOGUE[reason].http_status == response.status_code, code
    assert response.status_code < 500 or reason in (ErrorReason.NOT_SUPPORTED, ErrorReason.NO_WORKER), code
