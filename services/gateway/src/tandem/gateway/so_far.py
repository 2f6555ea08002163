"""Tokens and text of one answer as they grow, one small piece after the other."""

from __future__ import annotations

from array import array
from io import StringIO
from typing import Final

from tandem.v1 import session_pb2

_U32: Final = "I"


class SoFar:
    """What an answer says so far. A piece costs the same however many came before it, in time and in memory."""

    __slots__ = ("_text", "tokens")

    def __init__(self) -> None:
        self.tokens = array(_U32)
        self._text = StringIO()

    def add(self, delta: session_pb2.Delta) -> None:
        """Goes on."""
        self.tokens.fromlist(delta.token_ids[:])  # two thirds faster than to iterate over what protobuf keeps
        self._text.write(delta.text)

    @property
    def text(self) -> str:
        """All of the text."""
        return self._text.getvalue()

    def clear(self) -> None:
        """It begins anew."""
        self.tokens = array(_U32)
        self._text = StringIO()
