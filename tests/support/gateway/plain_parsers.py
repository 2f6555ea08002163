"""A double of SGLang's parsers: a model that writes `<think>...</think>`, and calls as `<call NAME ARGUMENTS>`."""

from __future__ import annotations

import re
from typing import Final

import orjson

from tandem.gateway.text.speech import CallPart, Constraint, ConstraintKind, Hearing, Said
from tandem.gateway.text.tools import ToolChoice

_CALL: Final = re.compile(r"<call (\S+) (.*?)>")
_THOUGHT: Final = re.compile(r"<think>(.*?)</think>")


class PlainParsers:
    """Parsers that know this one form."""

    def __init__(self, tool_parser: str = "plain", reasoning_parser: str = "") -> None:
        self.tool_parser = tool_parser
        self.reasoning_parser = reasoning_parser

    def keeps_special_tokens(self, hearing: Hearing) -> bool:
        """As SGLang's."""
        return hearing.tools is not None

    def constraint(self, hearing: Hearing) -> Constraint | None:
        """The names of the tools, where one must be called."""
        use = hearing.tools
        if use is None or use.choice is not ToolChoice.REQUIRED:
            return None
        return Constraint(ConstraintKind.JSON_SCHEMA, orjson.dumps([tool.name for tool in use.shown]).decode())

    def thinks(self, hearing: Hearing) -> bool:
        """Unless it is told not to."""
        return bool(self.reasoning_parser) and dict(hearing.template_options).get("thinking") is not False

    def listener(self, hearing: Hearing) -> PlainListener:
        """For one answer."""
        return PlainListener(hearing)


class PlainListener:
    """Holds everything back until the end."""

    def __init__(self, hearing: Hearing) -> None:
        self._hearing = hearing
        self._text = ""

    def hear(self, text: str, *, last: bool) -> Said:
        """Nothing until the end."""
        self._text += text
        return self.whole(self._text) if last else Said()

    def whole(self, text: str) -> Said:
        """All at once."""
        thoughts = "".join(_THOUGHT.findall(text)) if self._hearing.reasoning else ""
        text = _THOUGHT.sub("", text) if self._hearing.reasoning else text
        if self._hearing.tools is None:
            return Said(thoughts, text)
        found = enumerate(_CALL.findall(text))
        calls = tuple(CallPart(place, f"call_{place}", name, arguments) for place, (name, arguments) in found)
        return Said(thoughts, _CALL.sub("", text), calls)

    def complete(self) -> bool:
        """Always."""
        return True
