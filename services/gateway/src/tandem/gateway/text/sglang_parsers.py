"""SGLang's own parsers of tool calls and reasoning; the only part of the gateway that knows SGLang.

Needs SGLang where the gateway runs. What happens follows its `serving_chat.py`, so that a client gets of a text what
SGLang's own server makes of it.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from functools import partial
from typing import Any, Final

import orjson
from jsonschema import Draft202012Validator, SchemaError
from sglang.srt.entrypoints.openai.protocol import Tool as SglangTool
from sglang.srt.entrypoints.openai.protocol import ToolChoice as SglangToolChoice
from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.srt.function_call.json_array_parser import JsonArrayParser
from sglang.srt.function_call.utils import (
    get_json_schema_constraint,
    normalize_json_schema_types,
    strip_structural_tag_excludes,
)
from sglang.srt.parser.reasoning_parser import ReasoningParser
from sglang.srt.parser.response_template import ResponseTemplateReasoningDetector, ResponseTemplateToolDetector
from sglang.srt.parser.template_detection import ReasoningToggleConfig, detect_reasoning_pattern

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.text.speech import CallPart, Constraint, ConstraintKind, Hearing, Said, joined
from tandem.gateway.text.tools import ToolChoice, ToolUse

log = logging.getLogger(__name__)

OWN_PROMPTS: Final = frozenset(["deepseekv32", "deepseekv4", "deepseekv41", "kimi_k3", "inkling", "muse"])
"""Parsers of models whose prompts SGLang writes by code of its own rather than by a chat template."""
_KEEP_TOKENS: Final = frozenset(["apertus2509", "gpt-oss", "gemma4", "mistral"])
"""Reasoning parsers that go by special tokens."""
_MISREAD: Final = (ValueError, LookupError, TypeError, AttributeError)
"""What SGLang's parsers are known to raise where a model writes nonsense."""
_PIECE: Final = re.compile(r"<[|｜][^<>]{1,48}[|｜]>|</?\w{1,32}>|\[/?[A-Z_]{2,32}\]|[^<\[]{1,4}|[<\[]", re.DOTALL)
"""Pieces as tokens would be. SGLang's parsers are made for streams of single tokens, of which a call's markers are one
each; what a slow client gets may be many at once."""


class SglangParsers:
    """Parsers of one model. Raises TandemError(INVALID_ARGUMENT) for names that SGLang does not have."""

    def __init__(self, tool_parser: str, reasoning_parser: str, tokenizer: Any) -> None:
        """tokenizer: transformers', of the served model. Either name may be empty."""
        self.tool_parser = tool_parser
        self.reasoning_parser = reasoning_parser
        self._tokenizer = tokenizer
        _require("TANDEM_GATEWAY_TOOL_CALL_PARSER", tool_parser, FunctionCallParser.ToolCallParserEnum)
        _require("TANDEM_GATEWAY_REASONING_PARSER", reasoning_parser, ReasoningParser.DetectorMap)
        template = getattr(tokenizer, "chat_template", None)
        self._always, self._toggle = detect_reasoning_pattern(template if isinstance(template, str) else None)
        self._detector = (
            ReasoningParser(reasoning_parser, True, tokenizer=tokenizer).detector if reasoning_parser else None
        )

    def keeps_special_tokens(self, hearing: Hearing) -> bool:
        """Calls, and some models' reasoning, are between special tokens."""
        return hearing.tools is not None or (self.reasoning_parser in _KEEP_TOKENS and self.thinks(hearing))

    def thinks(self, hearing: Hearing) -> bool:
        """By the options of the chat's template, and by what the template says that they do."""
        if not self.reasoning_parser:
            return False
        return bool(self._always) or thinks(self._toggle, getattr(self._detector, "reasoning_default", None), hearing)

    def constraint(self, hearing: Hearing) -> Constraint | None:
        """Raises TandemError(INVALID_ARGUMENT) for a schema that is none."""
        use = hearing.tools
        if use is None:
            return None
        # Some parsers' grammars allow a call of any function that they know, whichever one is named.
        tools = [one for one in sglang_tools(use) if use.named in ("", one.function.name)]
        choice = sglang_choice(use)
        parser = FunctionCallParser(tools, self.tool_parser, tokenizer=self._tokenizer)
        thinking = self.thinks(hearing) and not self.reasoning_parser
        try:
            found = parser.get_structure_constraint(choice, parallel_tool_calls=use.parallel, thinking_mode=thinking)
            if found is None and use.choice is ToolChoice.REQUIRED and not parser.detector.parses_required_natively():
                found = ("json_schema", get_json_schema_constraint(tools, choice, parallel_tool_calls=use.parallel))
        except ValueError as error:  # tools whose $defs give one name two meanings
            raise TandemError(ErrorReason.INVALID_ARGUMENT, str(error), field="tools") from error
        if found is None:
            return None
        kind, value = found
        if kind == "structural_tag":
            if self._detector is not None and not isinstance(parser.detector, ResponseTemplateToolDetector):
                marks = (self._detector.think_start_token, self._detector.think_end_token)
                strip_structural_tag_excludes(value, marks)
            return Constraint(ConstraintKind.STRUCTURAL_TAG, orjson.dumps(value.model_dump(by_alias=True)).decode())
        if kind == "json_schema":
            text = value if isinstance(value, str) else orjson.dumps(value).decode()
            return Constraint(ConstraintKind.JSON_SCHEMA, text)
        if use.choice is ToolChoice.REQUIRED:
            raise TandemError(
                ErrorReason.NOT_SUPPORTED,
                f"The parser {self.tool_parser!r} can't force a call here. Use 'tool_choice': 'auto'.",
                field="tool_choice",
            )
        return None

    def listener(self, hearing: Hearing) -> SglangListener:
        """For one answer."""
        return SglangListener(self, hearing, self._tokenizer)


class SglangListener:
    """Takes one answer apart."""

    def __init__(self, parsers: SglangParsers, hearing: Hearing, tokenizer: Any) -> None:
        self._again = partial(SglangListener, parsers, hearing, tokenizer)
        self._parser_name = parsers.tool_parser
        self._use = hearing.tools
        self._tools = sglang_tools(hearing.tools) if hearing.tools is not None else []
        self._reasoning = _reasoning_parser(parsers, hearing, tokenizer) if hearing.reasoning else None
        self._calls: Any = None
        self._native = False
        if hearing.tools is not None:
            choice = sglang_choice(hearing.tools)
            parser = FunctionCallParser(self._tools, parsers.tool_parser, tokenizer=tokenizer, tool_choice=choice)
            self._native = hearing.tools.choice is not ToolChoice.REQUIRED or parser.owns_tool_format()
            self._calls = parser if self._native else JsonArrayParser()
        self._text = ""
        self._content = ""
        self._arguments: list[str] = []

    def hear(self, text: str, *, last: bool) -> Said:
        """The next piece of a stream, which may hold several tokens."""
        self._text += text
        said = [self._hear_piece(piece, last=False) for piece in _PIECE.findall(text)]
        if last:
            said.append(self._hear_piece("", last=True))
            said.append(self._missed())
        return joined(said)

    def whole(self, text: str) -> Said:
        """All of an answer."""
        reasoning = ""
        if self._reasoning is not None:
            thought, rest = self._reasoning.parse_non_stream(text)
            reasoning, text = thought or "", rest or ""
        if self._calls is None or _answers(self._reasoning):
            return Said(reasoning, text)
        try:
            content, calls = self._whole_calls(text)
        except _MISREAD as error:
            log.warning("a tool call can't be read, and is given as text: %s", error)
            return Said(reasoning, text)
        return Said(reasoning, content, calls)

    def complete(self) -> bool:
        """Whether no call broke off."""
        detector = getattr(self._calls, "detector", self._calls)
        return not getattr(detector, "incomplete_tool_call_indices", ())

    def _hear_piece(self, text: str, *, last: bool) -> Said:
        reasoning = ""
        if self._reasoning is not None:
            thought, rest = self._reasoning.parse_stream_end() if last else self._reasoning.parse_stream_chunk(text)
            reasoning, text = thought or "", rest or ""
        if self._calls is None or _answers(self._reasoning):
            return Said(reasoning, text)
        try:
            content, items = self._piece(text, last=last)
        except _MISREAD as error:
            log.warning("a tool call can't be read, and is given as text from here on: %s", error)
            self._calls = None
            return Said(reasoning, text)
        self._content += content
        calls = tuple(self._call(item, item.tool_index, begins=bool(item.name)) for item in items)
        return Said(reasoning, content, calls)

    def _piece(self, text: str, *, last: bool) -> tuple[str, list[Any]]:
        if isinstance(self._calls, JsonArrayParser):
            found = self._calls.parse_streaming_increment(text, self._tools)
            content, items = found.normal_text or "", list(found.calls)
            if last:
                end = self._calls.finish(self._tools)
                content, items = content + (end.normal_text or ""), items + list(end.calls)
        else:
            content, items = self._calls.parse_stream_chunk(text)
            if last:
                late, late_items = self._calls.parse_stream_end()
                content, items = (content or "") + (late or ""), [*items, *late_items]
        for item in items:
            self._arguments += [""] * (item.tool_index + 1 - len(self._arguments))
            self._arguments[item.tool_index] += item.parameters or ""
        return content or "", items

    def _missed(self) -> Said:
        """What the whole text has and the stream has not said: SGLang's stream parsers keep the last pieces of a call
        to themselves where nothing follows, and some drop the text before one."""
        if self._calls is None:
            return Said()
        whole = self._again().whole(self._text)
        calls = []
        for call in whole.calls:
            if call.index >= len(self._arguments):
                calls.append(call)
                continue
            said = self._arguments[call.index]
            if call.arguments.startswith(said) and call.arguments != said:
                calls.append(CallPart(call.index, "", "", call.arguments[len(said) :]))
        content = "" if self._content.strip() else whole.content
        return Said("", content, tuple(calls)) if whole.calls else Said()

    def _whole_calls(self, text: str) -> tuple[str, tuple[CallPart, ...]]:
        if self._native:
            if not self._calls.has_tool_call(text):
                return text, ()
            content, items = self._calls.parse_non_stream(text)
            return content or "", tuple(self._call(item, place, begins=True) for place, item in enumerate(items))
        # An answer that was held to a JSON schema: a list of calls.
        documents = orjson.loads(text)
        if isinstance(documents, dict):
            documents = [documents]
        found = []
        for place, one in enumerate(documents):
            arguments = _as_sglang_writes(one.get("parameters", {}))
            found.append(CallPart(place, self._call_id(one["name"], place), one["name"], arguments))
        return "", tuple(found)

    def _call(self, item: Any, place: int, *, begins: bool) -> CallPart:
        name = (item.name or "") if begins else ""
        return CallPart(place, self._call_id(name, place) if begins else "", name, item.parameters or "")

    def _call_id(self, name: str, place: int) -> str:
        if self._parser_name == "kimi_k2" and self._use is not None:
            return f"functions.{name}:{self._use.calls_before + place}"
        return f"call_{uuid.uuid4().hex[:24]}"


def thinks(toggle: ReasoningToggleConfig | None, default: str | None, hearing: Hearing) -> bool:
    """Whether a model reasons before it answers this chat.

    toggle: what its chat template says about that. default: what its parser says, where the template says nothing.
    """
    options = dict(hearing.template_options)
    effort = options.get("reasoning_effort")
    if toggle is not None:
        if toggle.special_case == "mistral":
            return effort not in (None, "none")
        if toggle.special_case == "hunyuan_effort":
            return effort not in ("none", "no_think")
        if toggle.toggle_param is None or toggle.default_enabled is None:
            return bool(toggle.special_case == "always")
        value = options.get(toggle.toggle_param)
        return value is not False if toggle.default_enabled else value is True
    if default == "mistral":
        return effort not in (None, "none")
    if default in ("thinking", "enable_thinking"):
        return options.get(default) is not False
    if default in ("explicit_thinking", "explicit_enable_thinking"):
        return options.get(default.removeprefix("explicit_")) is True
    return default == "always"


def sglang_tools(use: ToolUse) -> list[SglangTool]:
    """Tools as SGLang has them. Raises TandemError(INVALID_ARGUMENT) for a schema that is none."""
    found = []
    for place, tool in enumerate(use.tools):
        parsed = SglangTool(**orjson.loads(tool.document))
        _require_schema(f"tools[{place}].function.parameters", parsed.function.parameters)
        found.append(parsed)
    return found


def _require_schema(field: str, schema: Any) -> None:
    if schema is None:
        return
    try:
        normalize_json_schema_types(schema)
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT, f"'{field}' is no JSON schema: {error.message}", field=field
        ) from None
    except RecursionError:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"'{field}' is nested too deeply.", field=field) from None


def sglang_choice(use: ToolUse) -> Any:
    """A choice as SGLang has it."""
    return SglangToolChoice(function={"name": use.named}) if use.named else use.choice.value


def _require(setting: str, name: str, known: dict[str, Any]) -> None:
    if not name:
        return
    template = issubclass(known.get(name, object), ResponseTemplateToolDetector | ResponseTemplateReasoningDetector)
    if name in known and name not in OWN_PROMPTS and not template:
        return
    usable = ", ".join(sorted(known.keys() - OWN_PROMPTS - {"response_template", "beam"}))
    own = "is of a model whose prompts no chat template writes"
    why = own if name in known else "is not known to SGLang"
    raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{setting}: {name!r} {why}. There are: {usable}.")


def _reasoning_parser(parsers: SglangParsers, hearing: Hearing, tokenizer: Any) -> Any:
    return ReasoningParser(
        parsers.reasoning_parser,
        hearing.stream_reasoning,
        parsers.thinks(hearing),
        tokenizer=tokenizer,
        tool_call_parser_active=hearing.tools is not None,
    )


def _answers(reasoning: Any) -> bool:
    """Whether a format that says so has begun its answer, in which no text is a call."""
    return bool(getattr(getattr(reasoning, "detector", None), "answer_started", False))


def _as_sglang_writes(arguments: Any) -> str:
    """JSON with the spaces that SGLang's detectors write."""
    return json.dumps(arguments, ensure_ascii=False)
