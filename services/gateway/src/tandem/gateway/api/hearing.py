"""From what a client asks of a chat to how its answers are taken apart, and to what the engine holds them to."""

from __future__ import annotations

from dataclasses import replace

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.api.sampling import MAX_GRAMMAR_CHARACTERS
from tandem.gateway.calls import ChatPrompt
from tandem.gateway.text.speech import ConstraintKind, Hearing, Parsers
from tandem.gateway.text.tools import ToolChoice, ToolUse
from tandem.v1 import session_pb2


def heard(
    prompt: ChatPrompt,
    sampling: session_pb2.Sampling,
    use: ToolUse | None,
    parsers: Parsers | None,
    *,
    separate_reasoning: bool = True,
    stream_reasoning: bool = True,
) -> tuple[ChatPrompt, Hearing | None]:
    """The prompt that knows its tools, and how its answers are taken apart; None: they are text.

    Adds to `sampling` what holds the answer to the tools. Raises TandemError where nothing here can read tool calls,
    or for tools and choices that can't be had.
    """
    if use is not None and (parsers is None or not parsers.tool_parser):
        raise TandemError(
            ErrorReason.NOT_SUPPORTED,
            "'tools' need a parser that knows how the model writes its calls, and none is set:"
            " TANDEM_GATEWAY_TOOL_CALL_PARSER of the gateway. Or send 'tool_choice': 'none'.",
            field="tools",
        )
    reasoning = parsers is not None and bool(parsers.reasoning_parser) and separate_reasoning
    if parsers is None or (use is None and not parsers.reasoning_parser):
        return prompt, None
    begun = prompt.messages[-1].content if prompt.continue_last else ""
    hearing = Hearing(use, reasoning, stream_reasoning, prompt.template_options, begun)
    if use is not None:
        _hold(sampling, hearing, use, parsers)
        prompt = replace(prompt, tools=use.shown)
    if _grammar(sampling):
        sampling.reasoning_first = parsers.thinks(hearing)
    if parsers.keeps_special_tokens(hearing):
        sampling.skip_special_tokens = False
    return prompt, hearing if use is not None or reasoning else None


def _grammar(sampling: session_pb2.Sampling) -> bool:
    return bool(sampling.regex or sampling.ebnf or sampling.json_schema or sampling.structural_tag)


def _hold(sampling: session_pb2.Sampling, hearing: Hearing, use: ToolUse, parsers: Parsers) -> None:
    constraint = parsers.constraint(hearing)
    if constraint is None:
        return
    if _grammar(sampling):
        if use.choice is ToolChoice.REQUIRED:
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT,
                "'tool_choice' forces a call, which can't be combined with 'response_format', 'json_schema', 'regex' or"
                " 'ebnf'. Leave one out.",
                field="tool_choice",
            )
        return
    if len(constraint.text) > MAX_GRAMMAR_CHARACTERS:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT,
            f"'tools' make a grammar of {len(constraint.text)} characters; at most {MAX_GRAMMAR_CHARACTERS} are"
            " allowed. Send fewer or smaller ones.",
            field="tools",
        )
    if constraint.kind is ConstraintKind.JSON_SCHEMA:
        sampling.json_schema = constraint.text
    else:
        sampling.structural_tag = constraint.text
