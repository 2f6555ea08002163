"""The OpenAPI document of the gateway, for /openapi.json."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from tandem.gateway import api_fields, generate_schema, messages_schema, openai_schema, token_schema
from tandem.gateway.api_fields import Schema, closed, refused
from tandem.gateway.openai_schema import SchemaLimits

_ERROR: Final[Schema] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field at fault."},
                "code": {"type": "string", "description": "A reason of the error catalogue, in lower case."},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_REFUSAL: Final[Schema] = {
    "description": "Why it was not answered.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_LATER: Final[Schema] = {
    **_REFUSAL,
    "headers": {"Retry-After": {"description": "Seconds after which to come back.", "schema": {"type": "integer"}}},
}
READ: Final = {
    "/v1/models": "The models that are served.",
    "/v1/models/{model}": "One of them.",
    "/get_model_info": "The served model, in SGLang's words.",
    "/health": "The process lives.",
    "/ready": "Requests would be served; 503 says what is missing.",
    "/metrics": "Metrics for Prometheus.",
    "/openapi.json": "This document.",
}
_SUMMARIES: Final = {
    "/v1/chat/completions": "Answers a chat.",
    "/v1/completions": "Goes on from a text.",
    "/generate": "Goes on from a text, in SGLang's own shape.",
    "/v1/messages": "Answers a chat, in Anthropic's shape.",
    "/v1/messages/count_tokens": "Counts the tokens of such a chat.",
    "/v1/tokenize": "Turns texts or a chat into tokens.",
    "/v1/detokenize": "Turns tokens into text.",
}
_ALIASES: Final = {"/tokenize": "/v1/tokenize", "/detokenize": "/v1/detokenize"}
_EVENTS: Final = frozenset(["/v1/chat/completions", "/v1/completions", "/generate", "/v1/messages"])


def bodies(limits: SchemaLimits) -> dict[str, Schema]:
    """JSON schema of each endpoint's body."""
    params = closed({**api_fields.generate_sampling(limits), **refused(generate_schema.GENERATE_SAMPLING_UNSUPPORTED)})
    not_of_messages = refused(messages_schema.MESSAGES_UNSUPPORTED)
    return {
        "/v1/chat/completions": closed(
            {**api_fields.chat(limits), **refused(openai_schema.CHAT_UNSUPPORTED)}, ("messages",)
        ),
        "/v1/completions": closed(
            {**api_fields.completion(limits), **refused(openai_schema.COMPLETION_UNSUPPORTED)}, ("prompt",)
        ),
        "/generate": closed({**api_fields.generate(limits, params), **refused(generate_schema.GENERATE_UNSUPPORTED)}),
        "/v1/messages": closed({**api_fields.messages(), **not_of_messages}, ("messages", "max_tokens")),
        "/v1/messages/count_tokens": closed({**api_fields.count(), **not_of_messages}, ("messages",)),
        "/v1/tokenize": closed({**api_fields.tokenize(limits), **refused(token_schema.TOKENIZE_UNSUPPORTED)}),
        "/v1/detokenize": closed(api_fields.detokenize(limits), ("tokens",)),
    }


def document(limits: SchemaLimits) -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    known = bodies(limits)
    paths: dict[str, Any] = {path: {"post": _post(path, schema)} for path, schema in known.items()}
    paths |= {alias: {"post": _post(path, known[path])} for alias, path in _ALIASES.items()}
    paths |= {path: {"get": _get(path, summary)} for path, summary in READ.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tandem", "version": version("tandem-gateway")},
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _post(path: str, schema: Schema) -> dict[str, Any]:
    answer: dict[str, Any] = {"application/json": {"schema": {}}}
    if path in _EVENTS:
        answer["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "summary": _SUMMARIES[path],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {"description": "The answer.", "content": answer},
            **dict.fromkeys(("429", "503"), _LATER),
            "default": _REFUSAL,
        },
    }


def _get(path: str, summary: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "The answer."}, "default": _REFUSAL},
    }
    if "{model}" in path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation
