"""What happens to every HTTP request before its endpoint: its id, its trace, its key; and what it ends as."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.core.errors import ErrorReason, TandemError
from tandem.core.ids import RequestId
from tandem.gateway.gateway_metrics import GatewayMetrics
from tandem.gateway.problems import problem_of
from tandem.rpc import logs
from tandem.rpc.telemetry import TRACEPARENT_KEY, mint, parse

_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")
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
        api_keys: Sequence[str] = (),
        open_paths: frozenset[str] = frozenset(),
        retry_after_s: int = 1,
    ) -> None:
        """endpoints: paths that exist. api_keys: of which a request must carry one; empty = open to all.
        open_paths: those that need no key."""
        self._app = app
        self._retry_after_s = retry_after_s
        self._metrics = metrics
        self._endpoints = endpoints
        self._open_paths = open_paths
        self._api_keys = [key.encode() for key in api_keys]

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
            self._metrics.count_error(visit.endpoint, error.reason, visit.request_id)
            # Where the client has gone nobody reads it; where an operator gave its room up the client is still there.
            await problem_response(error, self._retry_after_s)(scope, receive, send_named)
        finally:
            self._metrics.count_answer(visit.endpoint, status)

    def _authorize(self, scope: Scope) -> None:
        """Raises UNAUTHENTICATED if the request needs a key and has none that is valid."""
        if not self._api_keys or scope["path"] in self._open_paths:
            return
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # Every key is compared, whole, so that the time tells nothing.
        matches = [hmac.compare_digest(given.strip().encode(), key) for key in self._api_keys]
        if kind.lower() != "bearer" or not any(matches):
            raise TandemError(
                ErrorReason.UNAUTHENTICATED, "Send 'Authorization: Bearer <key>' with a key that this gateway knows."
            )


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
