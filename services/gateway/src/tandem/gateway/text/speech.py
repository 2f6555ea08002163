"""What a model says, taken apart: its reasoning, the text for the reader, and the tools that it calls.

How a model writes these differs from model to model. What knows that is a `Parsers`;
`gateway/text/sglang_parsers.py` has it from SGLang.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from tandem.gateway.text.tools import ToolUse

TemplateOptions = tuple[tuple[str, str | int | float | bool], ...]


@dataclass(frozen=True, slots=True)
class CallPart:
    """A tool call, or a piece of one."""

    index: int
    """Place among the calls of the answer, from 0."""
    id: str
    """Given where a call begins; empty where its arguments go on."""
    name: str
    """The same."""
    arguments: str
    """JSON, or the next piece of it."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a piece of an answer, or all of it, comes to."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[CallPart, ...] = ()


def joined(parts: Sequence[Said]) -> Said:
    """Pieces that follow each other as one; those of one call become one piece of it."""
    calls: list[CallPart] = []
    for call in (call for part in parts for call in part.calls):
        if calls and not call.id and calls[-1].index == call.index:
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + call.arguments)
        else:
            calls.append(call)
    return Said("".join(part.reasoning for part in parts), "".join(part.content for part in parts), tuple(calls))


@dataclass(frozen=True, slots=True)
class Hearing:
    """How one answer is to be taken apart."""

    tools: ToolUse | None = None
    """None: a call is text like any other."""
    reasoning: bool = False
    """Whether reasoning is told apart from content."""
    stream_reasoning: bool = True
    """Whether reasoning is said as it comes, or once it is complete."""
    template_options: TemplateOptions = ()
    """Of the chat; some turn reasoning on and off."""
    begun: str = ""
    """What the client has the answer begin with, if it does."""


class ConstraintKind(Enum):
    """What a tool call is forced by."""

    JSON_SCHEMA = "json_schema"
    STRUCTURAL_TAG = "structural_tag"


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the engine holds an answer to, so that its tool calls are well formed."""

    kind: ConstraintKind
    text: str
    """JSON."""


class Listener(Protocol):
    """Takes one answer apart; either piece by piece or whole, and once."""

    def hear(self, text: str, *, last: bool) -> Said:
        """The next piece. last: nothing follows, so that nothing is to be held back."""

    def whole(self, text: str) -> Said:
        """All of an answer."""

    def complete(self) -> bool:
        """Whether every call that was heard is complete."""


class Parsers(Protocol):
    """Knows how the served model writes."""

    tool_parser: str
    """Name of what reads tool calls; empty = nothing does."""
    reasoning_parser: str
    """Name of what reads reasoning; empty = nothing does."""

    def keeps_special_tokens(self, hearing: Hearing) -> bool:
        """Whether answers must hold their special tokens, to be understood."""

    def constraint(self, hearing: Hearing) -> Constraint | None:
        """What holds the answer to the tools. Raises TandemError for tools or a choice that can't be had."""

    def thinks(self, hearing: Hearing) -> bool:
        """Whether the model begins with its reasoning."""

    def listener(self, hearing: Hearing) -> Listener:
        """For one answer."""
