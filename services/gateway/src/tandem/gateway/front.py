"""What happens to every HTTP request before its endpoint: its id, its trace, its key; and what it ends as."""

from __future__ import annotations

import logging
import re
import secrets
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RequestId
from tandem.gateway.gateway_metrics import GatewayMetrics
from tandem.gateway.keys import KeyRing
from tandem.gateway.problems import problem_of
from tandem.rpc import logs
from tandem.rpc.telemetry import TRACEPARENT_KEY, mint, parse

log = logging.getLogger(__name__)

_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")
_OPEN_PATHS: Final = frozenset({"/health", "/ready"})
"""Paths that need no key."""
_KEY: Final = "tandem_visit"


@dataclass(frozen=True, slots=True)
class Visit:
    """One HTTP request, as all of the gateway names it."""

    request_id: RequestId
    traceparent: str
    endpoint: str
    """Path of the endpoint, for metrics; "other" if there is none."""


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
        endpoints: frozenset[str],
        keys: KeyRing,
        retry_after_s: int = 1,
    ) -> None:
        """endpoints: paths that exist. keys: of which a request must carry one, unless the ring is open."""
        self._app = app
        self._retry_after_s = retry_after_s
        self._metrics = metrics
        self._endpoints = endpoints
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path = scope["path"]
        visit = Visit(_request_id(headers), _traceparent(headers), path if path in self._endpoints else "other")
        scope[_KEY] = visit
        logs.request_id.set(visit.request_id)
        # Where nothing was sent, the client had gone.
        status = 499

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = visit.request_id
            await send(message)

        try:
            self._authorize(scope)
            await self._app(scope, receive, send_named)
        except TandemError as error:
            # Endpoints let errors out only where no response has begun.
            self._metrics.errors.labels(visit.endpoint, error.reason.value).inc()
            # Where the client has gone nobody reads it; where an operator gave its room up the client is still there.
            await problem_response(error, self._retry_after_s)(scope, receive, send_named)
        finally:
            self._metrics.requests.labels(visit.endpoint, str(status)).inc()

    def _authorize(self, scope: Scope) -> None:
        """Raises UNAUTHENTICATED if the request needs a key and has none that is valid."""
        if self._keys.open or scope["path"] in _OPEN_PATHS:
            return
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        owner = self._keys.owner_of(given.strip()) if kind.lower() == "bearer" else None
        if owner is None:
            log.info("refused: no key that this gateway knows")
            raise TandemError(
                ErrorReason.UNAUTHENTICATED, "Send 'Authorization: Bearer <key>' with a key that this gateway knows."
            )
        log.debug("%s by the key %s", scope["path"], owner)


def problem_response(error: TandemError, retry_after_s: int = 1) -> Response:
    """An error as a response."""
    problem = problem_of(error, retry_after_s)
    return Response(problem.json(), problem.status, problem.headers, "application/json")


def _request_id(headers: Headers) -> RequestId:
    given = headers.get("x-request-id", "")
    return RequestId(given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16))


def _traceparent(headers: Headers) -> str:
    """A span of the client's trace, or of a new one."""
    given = parse(headers.get(TRACEPARENT_KEY, ""))
    span = given.child(secrets.randbits(64)) if given else mint(secrets.randbits(128), secrets.randbits(64))
    return str(span)
