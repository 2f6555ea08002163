"""The HTTP API: which path leads where."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.admission.keys import KeyRing
from tandem.gateway.admission.tenants import RATE_HEADERS
from tandem.gateway.api import openapi
from tandem.gateway.api.generate_schema import read_generate
from tandem.gateway.api.messages_schema import read_message_call
from tandem.gateway.api.not_served import NOT_SERVED, NotServed
from tandem.gateway.api.openai_schema import SchemaLimits, read_chat, read_completion
from tandem.gateway.api.problems import shape_of
from tandem.gateway.api.responses_schema import read_response
from tandem.gateway.web.dashboard_endpoints import EVENTS, FILES, PAGE, Dashboard, DashboardEvents, DashboardPages
from tandem.gateway.web.front import Front, problem_response
from tandem.gateway.web.generation import GenerationEndpoint, Works
from tandem.gateway.web.prepare import Catalog
from tandem.gateway.web.responses_endpoints import KeptResponses
from tandem.gateway.web.token_endpoints import TokenEndpoints
from tandem.rpc.metrics import CONTENT_TYPE

ENDPOINTS: Final[Mapping[str, str]] = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/generate": "POST",
    "/v1/messages": "POST",
    "/v1/responses": "POST",
    "/v1/messages/count_tokens": "POST",
    "/v1/tokenize": "POST",
    "/v1/detokenize": "POST",
    "/tokenize": "POST",
    "/detokenize": "POST",
    "/v1/models": "GET",
    "/get_model_info": "GET",
    "/health": "GET",
    "/ready": "GET",
    "/metrics": "GET",
    "/openapi.json": "GET",
    PAGE: "GET",
    EVENTS: "GET",
}
"""Every endpoint and its method."""
CORS_AGE_S: Final = 600
"""How long a browser remembers that it may ask."""
GENERATING: Final = frozenset(["/v1/chat/completions", "/v1/completions", "/generate", "/v1/messages", "/v1/responses"])
"""Those that generate."""


@dataclass(frozen=True, slots=True)
class HttpParts:
    """What the HTTP API stands on."""

    works: Works
    catalog: Catalog
    schema: SchemaLimits
    tokens: TokenEndpoints
    path_of: Callable[[str], str]
    """Where the tokenizer of a model is."""
    started: int
    """Seconds since 1970."""
    ready: Callable[[], str]
    """Empty if the gateway is ready, else what is missing."""
    render_metrics: Callable[[], Awaitable[bytes]]
    dashboard: Dashboard
    keys: KeyRing
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may read answers; `*` = all."""


def build_http(parts: HttpParts) -> Starlette:
    """The ASGI application."""
    pages, board = _Pages(parts), DashboardPages(parts.dashboard)
    read_a_chat = partial(read_chat, limits=parts.schema, parsers=parts.works.parsers)
    name = parts.works.responses.new_id
    read_a_response = partial(read_response, limits=parts.schema, parsers=parts.works.parsers, name=name)
    kept = KeptResponses(parts.works.responses)
    endpoints: dict[str, Any] = {
        "/v1/chat/completions": GenerationEndpoint(read_a_chat, parts.works),
        "/v1/completions": GenerationEndpoint(partial(read_completion, limits=parts.schema), parts.works),
        "/generate": GenerationEndpoint(partial(read_generate, limits=parts.schema), parts.works),
        "/v1/messages": GenerationEndpoint(partial(read_message_call, parsers=parts.works.parsers), parts.works),
        "/v1/responses": GenerationEndpoint(read_a_response, parts.works),
        "/v1/messages/count_tokens": parts.tokens.count(),
        "/v1/tokenize": parts.tokens.tokenize(),
        "/v1/detokenize": parts.tokens.detokenize(),
        "/tokenize": parts.tokens.tokenize(),
        "/detokenize": parts.tokens.detokenize(),
        "/v1/models": pages.models,
        "/get_model_info": pages.model_info,
        "/health": pages.health,
        "/ready": pages.ready,
        "/metrics": pages.metrics,
        "/openapi.json": pages.openapi,
        PAGE: board.file,
        EVENTS: DashboardEvents(parts.dashboard),
    }
    routes = [Route(path, endpoints[path], methods=[method]) for path, method in ENDPOINTS.items()]
    routes.append(Route("/v1/responses/{response}", kept.get, methods=["GET"]))
    routes.append(Route("/v1/responses/{response}", kept.delete, methods=["DELETE"]))
    routes.append(Route("/v1/responses/{response}/cancel", kept.cancel, methods=["POST"]))
    routes += [Route(path, NotServed(why)) for path, why in NOT_SERVED.items()]
    routes.append(Route("/v1/models/{model:path}", pages.model, methods=["GET"]))
    routes += [Route(path, board.file, methods=["GET"]) for path in FILES if path != PAGE]
    front = Middleware(
        Front,
        metrics=parts.works.metrics,
        tracing=parts.works.tracing,
        endpoints=frozenset([*ENDPOINTS, *NOT_SERVED]),
        generating={path: endpoints[path] for path in GENERATING},
        keys=parts.keys,
        open_paths=frozenset({"/health", "/ready", *FILES}),
        retry_after_s=parts.works.limits.retry_after_s,
    )
    handlers: dict[Any, Any] = {HTTPException: _not_here, Exception: _crashed}
    app = Starlette(routes=routes, middleware=[*_cors(parts.cors_origins), front], exception_handlers=handlers)
    app.router.redirect_slashes = False  # /generate/ is another path: 404 as any, not a 307 that no document tells of
    return app


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    """Before all else, as a browser asks without a key whether it may ask."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After", *RATE_HEADERS],
            max_age=CORS_AGE_S,
        )
    ]


async def _not_here(request: Request, error: HTTPException) -> Response:
    """No such path, or not by this method."""
    method, path = request.method, request.url.path[:200]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        found = TandemError(ErrorReason.METHOD_NOT_ALLOWED, f"{path} does not take {method}. Use {allowed}.")
        response = problem_response(found, shape=shape_of(path))
        response.headers["Allow"] = allowed
        return response
    listed = ", ".join(f"{verb} {name}" for name, verb in ENDPOINTS.items())
    return problem_response(TandemError(ErrorReason.UNKNOWN_ENDPOINT, f"There is no {path}. There are: {listed}."))


async def _crashed(request: Request, error: Exception) -> Response:
    del request, error  # uvicorn logs it, with its traceback
    return problem_response(TandemError(ErrorReason.INTERNAL))


class _Pages:
    """The endpoints that generate nothing."""

    def __init__(self, parts: HttpParts) -> None:
        self._parts = parts

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        del request
        return _json({"object": "list", "data": [self._model(name) for name in self._parts.catalog.names()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        return _json(self._model(self._parts.catalog.resolve(request.path_params["model"])))

    async def model_info(self, request: Request) -> Response:
        """GET /get_model_info."""
        del request
        name = self._parts.catalog.names()[0]
        path = self._parts.path_of(name)
        return _json({"model_path": path, "tokenizer_path": path, "is_generation": True, "served_model_name": name})

    async def health(self, request: Request) -> Response:
        """GET /health: the process lives."""
        del request
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """GET /ready: requests would be served."""
        del request
        missing = self._parts.ready()
        if missing:
            raise TandemError(ErrorReason.NO_WORKER, missing)
        return _json({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        del request
        return Response(await self._parts.render_metrics(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        del request
        return _json(openapi.document(self._parts.schema))

    def _model(self, name: str) -> dict[str, Any]:
        context = self._parts.catalog.facts.context_tokens(name)
        return {
            "id": name,
            "object": "model",
            "created": self._parts.started,
            "owned_by": "tandem",
            "root": self._parts.path_of(name),
            "max_model_len": context or None,
        }


def _json(document: object) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
