"""Tools that a model may call, and the calls that it makes, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call."""

    name: str
    document: str
    """All of it as JSON, in OpenAI's shape: `{"type": "function", "function": {...}}`."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model made earlier in a chat."""

    id: str
    name: str
    arguments: str
    """A JSON object, as text."""


class ToolChoice(Enum):
    """Whether the model is to call a tool."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a client wants of tools in one answer."""

    tools: tuple[Tool, ...]
    choice: ToolChoice = ToolChoice.AUTO
    named: str = ""
    """With REQUIRED: the only one to be called; empty = any."""
    parallel: bool = True
    """Whether an answer may hold several calls."""
    calls_before: int = 0
    """Calls in the chat so far; some models number theirs through."""

    @property
    def shown(self) -> tuple[Tool, ...]:
        """Those that the model is told of."""
        if self.choice is ToolChoice.NONE:
            return ()
        return tuple(one for one in self.tools if self.named in ("", one.name))
