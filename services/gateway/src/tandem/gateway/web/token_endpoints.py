"""/v1/tokenize, /v1/detokenize and /v1/messages/count_tokens: what a model's tokenizer says. No worker is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tandem.gateway.admission.slots import Slots
from tandem.gateway.api.fields import parse_object
from tandem.gateway.api.messages_schema import read_count
from tandem.gateway.api.openai_schema import SchemaLimits
from tandem.gateway.api.token_schema import read_detokenize, read_tokenize
from tandem.gateway.text.tokenizers import TokenizersOf
from tandem.gateway.web.bodies import READ_TIMEOUT_MS, read_body_in_time
from tandem.gateway.web.prepare import Catalog

MAX_AT_ONCE: Final = 64
"""Requests that are read or worked on at the same time; who comes then is told to come back."""


@dataclass(frozen=True, slots=True)
class TokenEndpoints:
    """These endpoints."""

    catalog: Catalog
    tokenizers: TokenizersOf
    limits: SchemaLimits
    max_body_bytes: int
    slots: Slots

    def tokenize(self) -> ASGIApp:
        """The ASGI application of /v1/tokenize."""
        return self._answering(self._tokenize)

    def detokenize(self) -> ASGIApp:
        """The ASGI application of /v1/detokenize."""
        return self._answering(self._detokenize)

    def count(self) -> ASGIApp:
        """The ASGI application of /v1/messages/count_tokens."""
        return self._answering(self._count)

    def _answering(self, answer: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> ASGIApp:
        return _TokenEndpoint(answer, self.slots, self.max_body_bytes)

    async def _tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        call = read_tokenize(body, self.limits)
        model = self.catalog.resolve(call.model)
        context = self.catalog.facts.context_tokens(model)
        tokenizer = await self.tokenizers.of(model)
        found = [await tokenizer.encode(prompt) for prompt in call.prompts]
        counts = [len(ids) for ids in found]
        if call.single:
            return {"tokens": found[0], "count": counts[0], "max_model_len": context or None}
        return {"tokens": found, "count": counts, "max_model_len": context or None}

    async def _count(self, body: dict[str, Any]) -> dict[str, Any]:
        call = read_count(body, self.limits)
        tokenizer = await self.tokenizers.of(self.catalog.resolve(call.model))
        return {"input_tokens": len(await tokenizer.encode(call.prompts[0]))}

    async def _detokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        call = read_detokenize(body, self.limits)
        tokenizer = await self.tokenizers.of(self.catalog.resolve(call.model))
        skip = call.skip_special_tokens
        found = [await tokenizer.text(ids, "tokens", skip_special_tokens=skip) for ids in call.lists]
        text = found[0] if call.single else found
        # SGLang's clients read the one, vLLM's the other.
        return {"text": text, "prompt": text}


class _TokenEndpoint:
    """ASGI application of one of them. It is an object, as Starlette takes functions for something else."""

    def __init__(
        self, answer: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]], slots: Slots, max_body_bytes: int
    ) -> None:
        self._answer = answer
        self._slots = slots
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        with self._slots.holding():
            body = parse_object(await read_body_in_time(scope, receive, self._max_body_bytes, READ_TIMEOUT_MS))
            document = await self._answer(body)
        await Response(orjson.dumps(document), media_type="application/json")(scope, receive, send)
