"""JSON schemas of what the HTTP API answers, for /openapi.json: what is always there; answers may have more."""

from __future__ import annotations

from typing import Any, Final

from tandem.core.errors import CATALOGUE, ErrorReason
from tandem.rpc.metrics import CONTENT_TYPE

Schema = dict[str, Any]


def _object(**properties: Schema) -> Schema:
    """An object that has all of these."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT: Final[Schema] = {"type": "string"}
_MAYBE_TEXT: Final[Schema] = {"type": ["string", "null"]}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_ABOUT: Final = {
    "message": _TEXT,
    "type": _TEXT,
    "param": {"type": ["string", "null"], "description": "The field at fault."},
    "code": {
        "enum": [reason.value.lower() for reason in ErrorReason],
        "description": "A reason of the error catalogue, in lower case.",
    },
}
_MATCHED: Final[Schema] = {
    "type": ["string", "integer", "null"],
    "description": "The token or text that ended the answer; SGLang's field.",
}
_USAGE: Final = _object(
    prompt_tokens=_COUNT,
    completion_tokens=_COUNT,
    total_tokens=_COUNT,
    prompt_tokens_details=_object(cached_tokens=_COUNT),
)
_CHOICE: Final = {
    "index": _COUNT,
    "finish_reason": _MAYBE_TEXT,
    "matched_stop": _MATCHED,
    "logprobs": _or_null({"type": "object"}),
}
_HEAD: Final = {"id": _TEXT, "created": {"type": "integer"}, "model": _TEXT}
_MODEL: Final = _object(
    id=_TEXT,
    object={"const": "model"},
    created={"type": "integer"},
    owned_by=_TEXT,
    root=_TEXT,
    max_model_len={"type": ["integer", "null"], "minimum": 1},
)
_GENERATED: Final = _object(
    text=_TEXT,
    output_ids=_list(_COUNT),
    meta_info=_object(
        id=_TEXT,
        finish_reason=_or_null({"type": "object", "required": ["type"]}),
        prompt_tokens=_COUNT,
        completion_tokens=_COUNT,
        cached_tokens=_COUNT,
        e2e_latency={"type": "number", "minimum": 0},
    ),
)
_TOKENS: Final = {"max_model_len": {"type": ["integer", "null"], "minimum": 1}}

COMPONENTS: Final[dict[str, Schema]] = {
    "Error": _object(error=_object(**_ABOUT)),
    "AnthropicError": _object(type={"const": "error"}, error=_object(**_ABOUT)),
    "ChatCompletion": _object(
        **_HEAD,
        object={"const": "chat.completion"},
        choices=_list(_object(**_CHOICE, message=_object(role={"const": "assistant"}, content=_MAYBE_TEXT))),
        usage=_USAGE,
    ),
    "Completion": _object(
        **_HEAD, object={"const": "text_completion"}, choices=_list(_object(**_CHOICE, text=_TEXT)), usage=_USAGE
    ),
    "Generated": {"anyOf": [_GENERATED, _list(_GENERATED)]},
    "Message": _object(
        id=_TEXT,
        type={"const": "message"},
        role={"const": "assistant"},
        model=_TEXT,
        content=_list(_object(type=_TEXT)),
        stop_reason=_MAYBE_TEXT,
        stop_sequence=_MAYBE_TEXT,
        usage=_object(
            input_tokens=_COUNT,
            cache_creation_input_tokens=_COUNT,
            cache_read_input_tokens=_COUNT,
            output_tokens=_COUNT,
        ),
    ),
    "Response": _object(
        id=_TEXT,
        object={"const": "response"},
        created_at={"type": "integer"},
        model=_TEXT,
        status={"enum": ["completed", "incomplete"]},
        output=_list(_object(id=_TEXT, type=_TEXT, status=_TEXT)),
        usage=_object(input_tokens=_COUNT, output_tokens=_COUNT, total_tokens=_COUNT),
    ),
    "Deleted": _object(id=_TEXT, object={"const": "response"}, deleted={"const": True}),
    "TokenCount": _object(input_tokens=_COUNT),
    "Tokenized": {
        "anyOf": [
            _object(tokens=_list(_COUNT), count=_COUNT, **_TOKENS),
            _object(tokens=_list(_list(_COUNT)), count=_list(_COUNT), **_TOKENS),
        ]
    },
    "Detokenized": {
        "anyOf": [_object(text=_TEXT, prompt=_TEXT), _object(text=_list(_TEXT), prompt=_list(_TEXT))],
    },
    "Models": _object(object={"const": "list"}, data=_list(_MODEL)),
    "Model": _MODEL,
    "ModelInfo": _object(
        model_path=_TEXT, tokenizer_path=_TEXT, is_generation={"const": True}, served_model_name=_TEXT
    ),
    "Status": _object(status=_TEXT),
    "Event": {
        "description": "One server-sent event. `data` is a JSON document, or [DONE].",
        **_object(data=_TEXT),
    },
    "Document": {"type": "object", "required": ["openapi", "paths"]},
}
"""By name, as the document has them."""
ANSWERS: Final = {
    "/v1/chat/completions": "ChatCompletion",
    "/v1/completions": "Completion",
    "/generate": "Generated",
    "/v1/messages": "Message",
    "/v1/responses": "Response",
    "get /v1/responses/{response}": "Response",
    "delete /v1/responses/{response}": "Deleted",
    "/v1/messages/count_tokens": "TokenCount",
    "/v1/tokenize": "Tokenized",
    "/v1/detokenize": "Detokenized",
    "/tokenize": "Tokenized",
    "/detokenize": "Detokenized",
    "/v1/models": "Models",
    "/v1/models/{model}": "Model",
    "/get_model_info": "ModelInfo",
    "/health": "Status",
    "/ready": "Status",
    "/openapi.json": "Document",
}
"""Which of them an endpoint answers with; those that are not here answer with text."""
STREAMING: Final = frozenset(["/v1/chat/completions", "/v1/completions", "/generate", "/v1/messages", "/v1/responses"])
"""Endpoints that answer with events where `stream` is true."""
_READS_BODY: Final = frozenset({400, 404, 408, 413, 429, 501, 503})
_GENERATES: Final = _READS_BODY | {500, 502, 504}
_OF_GET: Final = {
    "/v1/models/{model}": {404},
    "/ready": {503},
    "get /v1/responses/{response}": {404},
    "delete /v1/responses/{response}": {404},
    "post /v1/responses/{response}/cancel": {400, 404},
}
_OPEN: Final = frozenset({"/health", "/ready"})


def responses(path: str, *, post: bool) -> dict[str, Schema]:
    """What an endpoint answers with, by status."""
    found = {"200": {"description": "The answer.", "content": _content(path)}}
    of_body = _GENERATES if path in STREAMING else _READS_BODY
    statuses = {*(of_body if post else _OF_GET.get(path, ())), *(() if path in _OPEN else (401,))}
    return found | {str(status): _refusal(path, status) for status in sorted(statuses)}


def _content(path: str) -> Schema:
    if path not in ANSWERS:
        return {CONTENT_TYPE: {"schema": _TEXT}}
    content: Schema = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ANSWERS[path]}"}}}
    if path in STREAMING:
        content["text/event-stream"] = {"schema": {"$ref": "#/components/schemas/Event"}}
    return content


def _refusal(path: str, status: int) -> Schema:
    """Why a request was not answered: the reasons of the catalogue that have this status."""
    reasons = [reason.value.lower() for reason, spec in CATALOGUE.items() if spec.http_status == status]
    shape = "AnthropicError" if path.startswith("/v1/messages") else "Error"
    refusal: Schema = {
        "description": f"Not answered: {', '.join(reasons)}.",
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}},
    }
    if status in (429, 503):
        seconds = {"type": "integer", "minimum": 0}
        refusal["headers"] = {"Retry-After": {"description": "Seconds.", "schema": seconds, "required": True}}
    return refusal
