"""/v1/responses/{id}: answers that are kept, read again and forgotten."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.siblings.responses import Responses
from tandem.gateway.web.front import visit_of


class KeptResponses:
    """The endpoints of what is kept."""

    def __init__(self, responses: Responses) -> None:
        self._responses = responses

    async def get(self, request: Request) -> Response:
        """GET: the answer as it was. Raises UNKNOWN_RESPONSE."""
        kept = await self._responses.get(request.path_params["response"], visit_of(request.scope).owner)
        return Response(kept.document, media_type="application/json")

    async def delete(self, request: Request) -> Response:
        """DELETE: it is forgotten. Raises UNKNOWN_RESPONSE."""
        name = request.path_params["response"]
        await self._responses.delete(name, visit_of(request.scope).owner)
        document = {"id": name, "object": "response", "deleted": True}
        return Response(orjson.dumps(document), media_type="application/json")

    async def cancel(self, request: Request) -> Response:
        """POST .../cancel: what is kept has ended. Raises UNKNOWN_RESPONSE, INVALID_ARGUMENT."""
        await self._responses.get(request.path_params["response"], visit_of(request.scope).owner)
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT,
            "This response has ended. One that goes on is cancelled where its connection is closed.",
        )
