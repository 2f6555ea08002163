"""The OpenAPI document of the gateway, for /openapi.json."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any, Final

from tandem.gateway.api import answer_schemas as api_answers
from tandem.gateway.api import field_schemas as api_fields
from tandem.gateway.api import generate_schema, messages_schema, openai_schema, responses_schema, token_schema
from tandem.gateway.api import messages_fields as api_messages
from tandem.gateway.api.field_schemas import Schema, closed, refused
from tandem.gateway.api.openai_schema import SchemaLimits
from tandem.gateway.api.sglang_fields import OF_GENERATE

READ: Final = {
    "/v1/models": "The models that are served.",
    "/v1/models/{model}": "One of them.",
    "/get_model_info": "The served model, in SGLang's words.",
    "/health": "The process lives.",
    "/ready": "Requests would be served; 503 says what is missing.",
    "/metrics": "Metrics for Prometheus.",
    "/openapi.json": "This document.",
}
KEPT: Final = {
    "/v1/responses/{response}": {
        "get": "An answer of /v1/responses that is kept.",
        "delete": "Forgets it.",
    },
    "/v1/responses/{response}/cancel": {"post": "400: an answer is kept once it has ended."},
}
"""Paths of answers that are kept: method and summary."""
_IN_PATH: Final = re.compile(r"{(\w+)}")
_SUMMARIES: Final = {
    "/v1/chat/completions": "Answers a chat.",
    "/v1/completions": "Goes on from a text.",
    "/generate": "Goes on from a text, in SGLang's own shape.",
    "/v1/messages": "Answers a chat, in Anthropic's shape.",
    "/v1/responses": "Answers a chat, in the shape of OpenAI's newer API, and keeps the answer.",
    "/v1/messages/count_tokens": "Counts the tokens of such a chat.",
    "/v1/tokenize": "Turns texts or a chat into tokens.",
    "/v1/detokenize": "Turns tokens into text.",
}
_NAME: Final[Schema] = {"type": "string", "minLength": 1}
_ALIASES: Final = {"/tokenize": "/v1/tokenize", "/detokenize": "/v1/detokenize"}


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
        "/generate": closed({**api_fields.generate(limits, params), **refused(OF_GENERATE)}),
        "/v1/messages": closed({**api_messages.messages(), **not_of_messages}, ("messages", "max_tokens")),
        "/v1/responses": closed(
            {**api_fields.responses(limits), **refused(responses_schema.RESPONSES_UNSUPPORTED)}, ("input",)
        ),
        "/v1/messages/count_tokens": closed({**api_messages.count(), **not_of_messages}, ("messages",)),
        "/v1/tokenize": closed({**api_fields.tokenize(limits), **refused(token_schema.TOKENIZE_UNSUPPORTED)}),
        "/v1/detokenize": closed(api_fields.detokenize(limits), ("tokens",)),
    }


def document(limits: SchemaLimits) -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    known = bodies(limits)
    paths: dict[str, Any] = {path: {"post": _post(path, schema)} for path, schema in known.items()}
    paths |= {alias: {"post": _post(path, known[path])} for alias, path in _ALIASES.items()}
    paths |= {path: {"get": _get(path, summary)} for path, summary in READ.items()}
    for path, methods in KEPT.items():
        paths[path] = {method: _get(path, summary, f"{method} {path}") for method, summary in methods.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tandem", "version": version("tandem-gateway")},
        "paths": paths,
        "components": {
            "schemas": api_answers.COMPONENTS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _post(path: str, schema: Schema) -> dict[str, Any]:
    return {
        "summary": _SUMMARIES[path],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": api_answers.responses(path, post=True),
    }


def _get(path: str, summary: str, name: str = "") -> dict[str, Any]:
    """name: of the operation, where a path has several."""
    operation: dict[str, Any] = {"summary": summary, "responses": api_answers.responses(name or path, post=False)}
    for name in _IN_PATH.findall(path):
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": _NAME}]
    return operation
