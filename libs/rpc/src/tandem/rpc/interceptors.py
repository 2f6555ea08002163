"""The server's interceptor: errors become statuses, calls are counted, trace context is taken over, and what changes
something is done for operators only.

A TandemError becomes its status. An abort and a cancel pass. Anything else is a bug: it is logged
with its traceback, and the caller sees INTERNAL without its text.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.errors import from_rpc_error, to_status
from tandem.rpc.operators import Operators
from tandem.rpc.telemetry import TRACEPARENT_KEY, TRACESTATE_KEY, current_traceparent, parse

log = logging.getLogger(__name__)

CallHook = Callable[[str, str], None]
"""Called once per RPC with its method (`/package.Service/Method`) and the name of its status code."""


class OpenCall(Protocol):
    """The span of an RPC that runs."""

    @property
    def traceparent(self) -> str:
        """For what happens below it."""

    def end(self, code: str, error: TandemError | None) -> None:
        """The RPC ended with this status code."""


class CallSpans(Protocol):
    """Records RPCs whose callers are traced; see tandem.rpc.tracing.provider.Tracing."""

    def call(self, method: str, traceparent: str, tracestate: str) -> OpenCall:
        """An RPC begins."""


# In quotes: only the type checker knows gRPC's classes as generic ones.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def no_hook(method: str, code: str) -> None:
    """Counts nothing."""
    del method, code


async def _fail(context: _Context, error: TandemError) -> NoReturn:
    status = to_status(error)
    await context.abort(status.code, status.details, status.trailing_metadata)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler, of all four shapes, once."""

    def __init__(self, operators: Operators, on_call: CallHook = no_hook, spans: CallSpans | None = None) -> None:
        self._operators = operators
        self._on_call = on_call
        self._spans = spans
        self._wrapped: dict[str, _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Called by gRPC for every RPC."""
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def _wrap(self, method: str, handler: Any) -> Any:
        codec = {
            "request_deserializer": _reading(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        if handler.request_streaming and handler.response_streaming:
            behaviour = self._guard(method, handler.stream_stream)
            return grpc.stream_stream_rpc_method_handler(behaviour, **codec)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._guard(method, handler.unary_stream), **codec)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(self._guard(method, handler.stream_unary), **codec)
        return grpc.unary_unary_rpc_method_handler(self._guard(method, handler.unary_unary), **codec)

    def _guard(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """The same behaviour inside a `_Call`. Streams may be async generators, or use context.write."""

        async def generate(request: Any, context: _Context) -> AsyncIterator[Any]:
            async with _Call(method, context, self._on_call, self._spans):
                self._operators.admit(method, context)
                async with aclosing(behaviour(_readable(request), context)) as messages:
                    async for message in messages:
                        yield message

        async def answer(request: Any, context: _Context) -> Any:
            async with _Call(method, context, self._on_call, self._spans):
                self._operators.admit(method, context)
                return await behaviour(_readable(request), context)

        if inspect.isasyncgenfunction(behaviour):
            return generate
        if inspect.iscoroutinefunction(behaviour):
            return answer
        raise TypeError(f"{method} must be an async function or an async generator")


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Bytes that are no message. gRPC would end such an RPC by itself, without a reason, and log it as our crash."""

    why: str


def _reading(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """The same, but for what it refuses, which is told by a value."""
    if deserialize is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return _Unreadable(str(error))

    return read


def _readable(request: Any) -> Any:
    """A request, or the requests of a stream, that could be read. Raises INVALID_ARGUMENT where one could not."""
    if isinstance(request, _Unreadable):
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"The request can't be read: {request.why}")
    return request if isinstance(request, Message) or not hasattr(request, "__aiter__") else _Readable(request)


class _Readable:
    """The requests of a stream."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = aiter(requests)

    def __aiter__(self) -> _Readable:
        return self

    async def __anext__(self) -> Any:
        return _readable(await anext(self._requests))


class _Call:
    """One RPC: takes its trace context, turns its error into a status, and reports how it ended."""

    def __init__(self, method: str, context: _Context, on_call: CallHook, spans: CallSpans | None) -> None:
        self._method = method
        self._context = context
        self._on_call = on_call
        self._spans = spans
        self._span: OpenCall | None = None

    async def __aenter__(self) -> None:
        metadata = dict(self._context.invocation_metadata() or ())
        given = str(metadata.get(TRACEPARENT_KEY, ""))
        # gRPC runs each RPC in a task of its own, so that nobody has to reset this.
        parent = parse(given)
        if parent is not None and parent.sampled and self._spans is not None:
            self._span = self._spans.call(self._method, given, str(metadata.get(TRACESTATE_KEY, "")))
            given = self._span.traceparent
        current_traceparent.set(given if parent is not None else "")

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        del kind, traceback
        if error is None:
            self._ended(_code_name(self._context) or "OK")
            return
        if isinstance(error, grpc.aio.AbortError):
            self._ended(_code_name(self._context) or "ABORTED")
            return
        if not isinstance(error, Exception):
            self._ended("CANCELLED")
            return
        known = self._known(error)
        self._ended(known.spec.grpc_code, known)
        await _fail(self._context, known)

    def _ended(self, code: str, error: TandemError | None = None) -> None:
        self._on_call(self._method, code)
        if self._span is not None:
            self._span.end(code, error)

    def _known(self, error: Exception) -> TandemError:
        if isinstance(error, TandemError):
            return error
        if isinstance(error, grpc.aio.AioRpcError):
            return from_rpc_error(error)
        log.error("%s failed", self._method, exc_info=error)
        return TandemError(ErrorReason.INTERNAL)


def _code_name(context: _Context) -> str:
    """Name of the status code that a handler has set, or empty. gRPC keeps what was set, code or number."""
    code: Any = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    return next((status.name for status in grpc.StatusCode if number and status.value[0] == number), "")
