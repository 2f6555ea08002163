"""A decode worker that answers the questions of SGLang's own test cases as a good model would, and can call tools.

What it says under a grammar has to be allowed by it, as SGLang compiles it: else no model could have said it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from tandem.v1 import session_pb2
from tests.support.gateway.cluster import encoder
from tests.support.gateway.fake_worker import FIRST_TOKEN, Send

PIECE: Final = 4
"""Characters of a token."""
LLAMA_END: Final = 128009
"""Token with which Llama's models end their turn."""

Calls = tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What is said where a prompt asks for it."""

    asked: str
    """Part of the prompt."""
    reply: str | Calls
    held: str = ""
    """Part of the grammar, if the reply is only for answers that are held to one with it."""


PARIS: Final = {"city": "Paris", "unit": "celsius"}
PLACE: Final = {"location": "Los Angeles", "unit": "celsius"}
DATA: Final = {"metrics": ["latency"], "config": {"threshold": 0.5, "enabled": True}}
CAPITAL: Final = '{\n   "name": "Paris",\n   "population": 2100000\n}'
KNOWN: Final = (
    Known("top 5 populated cities", tuple(("get_weather", {"city": one}) for one in ("New York", "Los Angeles"))),
    Known("trip to Tokyo", (("get_weather", {"location": "Tokyo"}), ("get_tourist_attractions", {"city": "Tokyo"}))),
    Known("Analyze some data", (("analyze_data", {"data": DATA}),)),
    Known("Compute (3+5)", (("add", {"a": 3, "b": 5}),)),
    Known("sum 5 and 7", (("add", {"a": 5, "b": 7}),)),
    Known("compute 5 - 7", (("sub", {"int_a": 5, "int_b": 7}),)),
    Known("Tell me about Paris", (("get_weather", {"city": "Paris"}),)),
    Known("in Paris in celsius", (("get_current_weather", PARIS),)),
    Known("weather like in Los Angeles", (("get_current_weather", PLACE),)),
    Known("capital of France?", (("get_current_weather", PARIS),), held="get_current_weather"),
    Known("capital of France?", (("get_weather", {"city": "Paris"}),), held="get_weather"),
    Known("capital of France.", CAPITAL, held="population"),
    *(
        Known(f"capital of {country}", f" {capital}\n")
        for country, capital in {
            "France": "Paris",
            "Germany": "Berlin",
            "Italy": "Rome",
            "Japan": "Tokyo",
            "Spain": "Madrid",
            "Egypt": "Cairo",
            "Russia": "Moscow",
            "Australia": "Canberra",
        }.items()
    ),
    Known("17 multiplied by 23", " 391\n"),
    Known("three primary colors", " yellow\n"),
    Known("What is 2 + 2?", "4"),
    Known("fantasy story", "The tower burned.\nNobody came, and the rain fell on it for a year and a day."),
    Known("simple JSON with name, age", '{"name": "Alice", "age": 30, "city": "Paris"}'),
    Known("single key JSON", '{"name":"Alice"}'),
)


def written_in_json(calls: Calls, key: str) -> list[str]:
    """Each call as a JSON object, its arguments under a key; with the spaces that grammars want."""
    return [f'{{"name":"{name}", "{key}":{json.dumps(arguments)}}}' for name, arguments in calls]


def written_in_python(calls: Calls) -> str:
    """A list of calls as Python has them."""
    written = (f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in calls)
    return f"[{', '.join(written)}]"


FORMS: Final[dict[str, Callable[[Calls], str]]] = {
    "llama3": lambda calls: ";".join(f"<|python_tag|>{one}" for one in written_in_json(calls, "arguments")),
    "qwen25": lambda calls: "\n".join(
        f"<tool_call>\n{one}\n</tool_call>" for one in written_in_json(calls, "arguments")
    ),
    "mistral": lambda calls: f"[TOOL_CALLS] [{', '.join(written_in_json(calls, 'arguments'))}]",
    "lfm2": lambda calls: f"<|tool_call_start|>{written_in_python(calls)}<|tool_call_end|>",
    "pythonic": written_in_python,
}
"""How models write calls, by the name of the parser that reads them."""
ONE_IF_HELD: Final = frozenset(["mistral"])
"""Those whose grammar allows no two calls that the parser reads as two."""


class KnowingModel:
    """Says what is known. One for each kind of model."""

    def __init__(self, parser: str) -> None:
        """parser: of tool calls."""
        self._parser = parser
        self._grammars: Any = None
        self.disallowed: list[str] = []
        """What was said under a grammar that does not allow it."""

    async def answer(self, submit: session_pb2.Submit, send: Send) -> None:
        """The script of a decode worker."""
        text = self._text(submit)
        for delta in deltas(submit, text):
            send(delta)
            await asyncio.sleep(0)

    def _text(self, submit: session_pb2.Submit) -> str:
        prompt = encoder().text(submit.input_ids, skip_special_tokens=False)
        sampling = submit.sampling
        held = sampling.json_schema or sampling.structural_tag or sampling.regex or sampling.ebnf
        found = next((one.reply for one in KNOWN if one.asked in prompt and one.held in held), "I do not know.")
        if isinstance(found, str):
            text = found
        elif sampling.json_schema:
            text = f"[{', '.join(written_in_json(found, 'parameters'))}]"
        else:
            text = FORMS[self._parser](found[:1] if held and self._parser in ONE_IF_HELD else found)
        if held and not self._allowed(sampling, text):
            self.disallowed.append(f"{text} by {held}")
        return text

    def _allowed(self, sampling: session_pb2.Sampling, text: str) -> bool:
        """Whether an answer may be this text, and end there."""
        if self._grammars is None:
            from sglang.srt.constrained.xgrammar_backend import XGrammarGrammarBackend

            self._grammars = XGrammarGrammarBackend(encoder().tokenizer, encoder().vocabulary, [1])
        dispatch = {
            "json_schema": self._grammars.dispatch_json,
            "structural_tag": self._grammars.dispatch_structural_tag,
            "regex": self._grammars.dispatch_regex,
            "ebnf": self._grammars.dispatch_ebnf,
        }
        kind = next(one for one in dispatch if getattr(sampling, one))
        matcher = getattr(dispatch[kind](getattr(sampling, kind)), "matcher", None)  # none of a grammar that is none
        return bool(matcher and matcher.accept_string(text) and matcher.is_completed())


def deltas(submit: session_pb2.Submit, text: str) -> Iterator[session_pb2.Delta]:
    """A text as the deltas of an answer, which ends at a stop text or at its length as an engine would end it."""
    stop = session_pb2.FINISH_KIND_STOP
    finish = session_pb2.Finish(kind=stop, matched_token_id=LLAMA_END, prompt_tokens=len(submit.input_ids))
    for one in submit.sampling.stop:
        if one in text:
            text = text[: text.index(one)]
            finish.ClearField("matched_token_id")
            finish.matched_text = one
    pieces = [text[place : place + PIECE] for place in range(0, len(text), PIECE)]
    if len(pieces) > submit.sampling.max_new_tokens:
        pieces = pieces[: submit.sampling.max_new_tokens]
        finish.kind = session_pb2.FINISH_KIND_LENGTH
        finish.ClearField("matched_token_id")
        finish.matched_text = ""
    for place, piece in enumerate(pieces):
        yield session_pb2.Delta(room=submit.room, token_ids=[FIRST_TOKEN + place], text=piece)
    finish.completion_tokens = len(pieces)
    yield session_pb2.Delta(room=submit.room, finish=finish)
