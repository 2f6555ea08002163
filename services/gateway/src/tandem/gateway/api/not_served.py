"""Endpoints that clients of OpenAI and SGLang know and that are not offered here: each says why."""

from __future__ import annotations

from typing import Final

from starlette.types import Receive, Scope, Send

from tandem.core.errors import ErrorReason, TandemError

_NO_VECTORS: Final = (
    "Prefill hands its KV cache to decode, which answers with tokens;"
    " no worker returns a vector or a score of a prompt."
)
_SCORES: Final = f"{_NO_VECTORS} For log probabilities of its tokens use /generate with 'logprob_start_len'."
_TEXT_ONLY: Final = "Prompts and answers are text only."
_NO_MEMORY: Final = "Nothing of a request is kept once it is answered."

NOT_SERVED: Final[dict[str, str]] = {
    "/v1/embeddings": _NO_VECTORS,
    "/encode": _NO_VECTORS,
    "/v1/rerank": _SCORES,
    "/v1/score": _SCORES,
    "/v1/classify": _SCORES,
    "/classify": _SCORES,
    "/v1/moderations": _SCORES,
    "/v1/audio/speech": _TEXT_ONLY,
    "/v1/audio/transcriptions": _TEXT_ONLY,
    "/v1/audio/translations": _TEXT_ONLY,
    "/v1/images/generations": _TEXT_ONLY,
    "/v1/images/edits": _TEXT_ONLY,
    "/v1/images/variations": _TEXT_ONLY,
    "/v1/files": f"{_NO_MEMORY} Send prompts in requests.",
    "/v1/batches": f"{_NO_MEMORY} Send a list of prompts to /v1/completions or /generate.",
    "/v1/fine_tuning/jobs": "Models are served as they are.",
}
"""Paths, and why there is no such thing."""


class NotServed:
    """ASGI application that refuses, whatever the method."""

    def __init__(self, why: str) -> None:
        self._why = why

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises NOT_SUPPORTED."""
        raise TandemError(ErrorReason.NOT_SUPPORTED, f"{scope['path']} is not offered here. {self._why}")
