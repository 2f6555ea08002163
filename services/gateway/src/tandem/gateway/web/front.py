"""What happens to every HTTP request before its endpoint: its id, its trace, its key; and what it ends as."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from opentelemetry.trace import INVALID_SPAN, Span
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RequestId
from tandem.gateway.admission.keys import KeyRing
from tandem.gateway.admission.wishes import PRIORITY_HEADER, TIMEOUT_HEADER
from tandem.gateway.api.problems import ErrorShape, problem_of, shape_of
from tandem.gateway.gateway_metrics import GatewayMetrics
from tandem.rpc import logs
from tandem.rpc.telemetry import TRACEPARENT_KEY, TRACESTATE_KEY
from tandem.rpc.tracing import names
from tandem.rpc.tracing.provider import Tracing, fail, remote, trace_id_of, traceparent_of

log = logging.getLogger(__name__)

_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")
_KEY: Final = "tandem_visit"


@dataclass(frozen=True, slots=True)
class Visit:
    """One HTTP request, as all of the gateway names it."""

    request_id: RequestId
    span: Span
    """Of the whole request; none where it generates nothing."""
    endpoint: str
    """Path of the endpoint, for metrics; "other" if there is none."""
    session: str = ""
    """What the headers name the session by, of any length; empty if they do not."""
    timeout: str = ""
    """What they say of the time that the request may take; empty if they do not."""
    priority: str | None = None
    """What they say of its class of priority."""
    owner: str = ""
    """Name of the key that it came with; empty where none is needed."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of the answer, whatever it is; endpoints add theirs."""


def visit_of(scope: Scope) -> Visit:
    """The visit that Front found for a request."""
    visit: Visit = scope[_KEY]
    return visit


class Front:
    """ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: GatewayMetrics,
        tracing: Tracing,
        endpoints: frozenset[str],
        generating: Mapping[str, ASGIApp],
        keys: KeyRing,
        open_paths: frozenset[str] = frozenset(),
        retry_after_s: int = 1,
    ) -> None:
        """endpoints: paths that exist. generating: the endpoints whose requests have spans; a POST goes there past
        `app`, as a router's coroutines would live as long as a stream does. keys: of which a request must carry one,
        unless the ring is open. open_paths: those that need no key.
        """
        self._app = app
        self._retry_after_s = retry_after_s
        self._metrics = metrics
        self._tracing = tracing
        self._endpoints = endpoints
        self._generating = generating
        self._open_paths = open_paths
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = self._visit(scope)
        scope[_KEY] = visit
        logs.about(visit.request_id, trace_id_of(visit.span))
        traceparent = traceparent_of(visit.span)
        # Where nothing was sent, the client had gone.
        status = 499

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = visit.request_id
                if traceparent:
                    headers[TRACEPARENT_KEY] = traceparent
                for name, value in visit.headers.items():
                    headers[name] = value
            await send(message)

        try:
            if owner := self._owner(scope):
                scope[_KEY] = replace(visit, owner=owner)
            app = self._generating.get(scope["path"]) if scope["method"] == "POST" else None
            await (app or self._app)(scope, receive, send_named)
        except TandemError as error:
            # Endpoints let errors out only where no response has begun.
            self._metrics.count_error(visit.endpoint, error.reason, visit.request_id)
            _note_error(visit.span, error)
            # Where the client has gone nobody reads it; where an operator gave its room up the client is still there.
            shape = shape_of(scope["path"])
            await problem_response(error, self._retry_after_s, shape)(scope, receive, send_named)
        except BaseException as error:
            gone = isinstance(error, asyncio.CancelledError)
            reason = ErrorReason.CANCELLED if gone else ErrorReason.INTERNAL
            fail(visit.span, reason, "The gateway stopped." if gone else "The gateway failed.")
            if not gone:
                self._metrics.count_error(visit.endpoint, reason, visit.request_id)
            raise
        finally:
            self._metrics.count_answer(visit.endpoint, status)
            visit.span.set_attribute(names.HTTP_STATUS, status)
            visit.span.end()

    def _visit(self, scope: Scope) -> Visit:
        headers, path = Headers(scope=scope), scope["path"]
        request_id = _request_id(headers)
        span: Span = INVALID_SPAN
        if path in self._generating:
            caller = remote(headers.get(TRACEPARENT_KEY, ""), ",".join(headers.getlist(TRACESTATE_KEY)))
            span = self._tracing.enter(
                f"{scope['method']} {path}",
                caller,
                {
                    names.REQUEST_ID: request_id,
                    names.HTTP_METHOD: scope["method"],
                    names.HTTP_ROUTE: path,
                    names.URL_PATH: path,
                    names.URL_SCHEME: scope.get("scheme", "http"),
                },
            )
        endpoint = path if path in self._endpoints else "other"
        return Visit(
            request_id,
            span,
            endpoint,
            headers.get("x-session-id", ""),
            headers.get(TIMEOUT_HEADER, ""),
            headers.get(PRIORITY_HEADER),
        )

    def _owner(self, scope: Scope) -> str:
        """The name of a request's key, empty where it needs none. Raises UNAUTHENTICATED without a valid one."""
        if self._keys.open or scope["path"] in self._open_paths:
            return ""
        headers = Headers(scope=scope)
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            # Where Anthropic's clients put it.
            given = headers.get("x-api-key", "")
        owner = self._keys.owner_of(given.strip()) if given.strip() else None
        if owner is None:
            log.info("refused: no key that this gateway knows")
            raise TandemError(
                ErrorReason.UNAUTHENTICATED, "Send 'Authorization: Bearer <key>' with a key that this gateway knows."
            )
        log.debug("%s by the key %s", scope["path"], owner)
        return owner


def problem_response(error: TandemError, retry_after_s: int = 1, shape: ErrorShape = ErrorShape.OPENAI) -> Response:
    """An error as a response."""
    problem = problem_of(error, retry_after_s, shape)
    return Response(problem.json(), problem.status, problem.headers, "application/json")


def _request_id(headers: Headers) -> RequestId:
    given = headers.get("x-request-id", "")
    return RequestId(given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16))


def _note_error(span: Span, error: TandemError) -> None:
    """By the convention for servers, what the client is to blame for is no failure; its reason is there anyway."""
    if problem_of(error, 0).status >= 500:
        fail(span, error.reason, error.message)
    else:
        span.set_attribute(names.ERROR_TYPE, error.reason.value)
