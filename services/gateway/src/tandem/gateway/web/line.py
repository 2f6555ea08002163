"""The way of a stream's pieces past ASGI: straight to the client's connection, without a coroutine for each.

uvicorn's protocol, with a Line in the scope of each request. What begins and ends a response goes through ASGI as
always; in between, while the response is chunked and the connection takes more, pieces may be written through the Line.
It also says when the client goes, without a task that waits for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_KEY: Final = "tandem_line"


class Line:
    """Of one response."""

    __slots__ = ("_when_gone", "cycle")

    def __init__(self) -> None:
        self.cycle: RequestResponseCycle | None = None
        """uvicorn's state of the response; None before the request's head is read."""
        self._when_gone: Callable[[], None] | None = None

    @property
    def open(self) -> bool:
        """Whether pieces may be written: the response has begun, is chunked, and the client is not behind."""
        cycle = self.cycle
        if cycle is None or not cycle.chunked_encoding or cycle.response_complete:
            return False
        return not cycle.flow.write_paused and not cycle.disconnected

    def write(self, piece: bytes) -> None:
        """Writes a piece of the body to a line that is open."""
        if piece and self.cycle is not None:  # an empty chunk would be the end
            self.cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def when_gone(self, hook: Callable[[], None] | None) -> None:
        """Sets what is called when the client goes before the response is whole; at once if it has. None = nothing."""
        self._when_gone = hook
        self.look()

    def look(self) -> None:
        """The connection may have ended."""
        if self._when_gone is not None and self.cycle is not None and self.cycle.disconnected:
            self._when_gone()


class LineProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a Line for each request."""

    __slots__ = ()

    def on_message_begin(self) -> None:
        """A request comes."""
        super().on_message_begin()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[_KEY] = Line()

    def on_headers_complete(self) -> None:
        """Its head is read."""
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope:
            line_of(self.scope).cycle = self.cycle  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        super().connection_lost(exc)
        if self.cycle is not None:
            line_of(self.cycle.scope).look()  # type: ignore[arg-type]


def line_of(scope: Scope) -> Line:
    """The line of a request; one that writes nothing where the server has none."""
    line: Line = scope.get(_KEY) or Line()
    return line
