"""Sampling parameters and grammars through the whole system to real SGLang, token for token against plain SGLang."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.settings import environment
from tests.support.system.asking import generate, prompt_of, streamed
from tests.support.system.reference import References
from tests.support.system.system import MODEL, ROOT, System, running_system

pytestmark = [pytest.mark.sglang, pytest.mark.slow, pytest.mark.timeout(600)]

NEW_TOKENS = 24
PROMPT = prompt_of(40, seed=5)
SCHEMA = {
    "type": "object",
    "properties": {"dish": {"enum": ["soup", "cake"]}, "spoons": {"enum": [1, 2, 3]}},
    "required": ["dish", "spoons"],
    "additionalProperties": False,
}
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"logit_bias": {"77": 100}},
    {"frequency_penalty": 2.0},
    {"presence_penalty": 2.0},
    {"repetition_penalty": 2.0},
    {"regex": "(yes|no), (yes|no)"},
    {"ebnf": 'root ::= "a" | "b" | "ccc"'},
    {"json_schema": json.dumps(SCHEMA)},
]
NAMES = [next(iter(one), "greedy") for one in SAMPLINGS]

PARSER = {"tool_call_parser": "qwen25"}
"""Of the gateway, and of plain SGLang."""
VOCABULARY: dict[str, int] = json.loads((MODEL / "tokenizer.json").read_text())["model"]["vocab"]
TERSE = {"1": 100, **{str(token): -100 for text, token in VOCABULARY.items() if set(text) <= set("ĠĊĉč")}}
"""Biases towards the token that ends an answer, and against white space: the tiny model was taught neither tools nor
JSON, and where the grammar leaves it a choice it fills its answer with blanks, or talks on behind a call."""


def tool(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    """A function whose arguments are held to their schema."""
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "strict": True, "parameters": schema}}


TOOLS = [
    tool("cook", {"dish": {"enum": ["soup", "cake"]}, "hot": {"type": "boolean"}}),
    tool("rest", {}),
]
CALLS: dict[str, dict[str, Any]] = {
    choice: {
        "model": "tandem-tiny",
        "messages": [{"role": "user", "content": "What do you like to eat?"}],
        "tools": TOOLS,
        "tool_choice": choice if choice == "required" else {"type": "function", "function": {"name": choice}},
        "temperature": 0,
        "max_tokens": 200,
        "logit_bias": TERSE,
        "logprobs": True,
    }
    for choice in ("required", "cook", "rest")
}
PLAIN_CALLS = [
    {**chat, "tools": [one for one in TOOLS if choice in ("required", one["function"]["name"])]}
    for choice, chat in CALLS.items()
]
"""What plain SGLang is asked: with this parser its grammar lets a model call any function, whichever one is named."""


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    """What SGLang answers by itself."""
    folder, prompts = tmp_path_factory.mktemp("reference"), [PROMPT] * len(SAMPLINGS)
    return References(folder, prompts, NEW_TOKENS, samplings=SAMPLINGS, chats=PLAIN_CALLS)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One prefill and one decode worker."""
    with running_system(tmp_path_factory.mktemp("pair"), "--tool-call-parser", PARSER["tool_call_parser"]) as system:
        yield system


@pytest.mark.parametrize("place", range(len(SAMPLINGS)), ids=NAMES)
async def test_each_is_as_plain_sglang_has_it_whole_and_streamed(
    pair: System, references: References, place: int
) -> None:
    wanted, greedy = (references.answers(**PARSER)[number] for number in (place, 0))
    assert place == 0 or wanted != greedy, "the parameter changes nothing here, so that this shows nothing"
    async with pair.client() as client:
        whole = await generate(client, PROMPT, NEW_TOKENS, ignore_eos=True, **SAMPLINGS[place])
        stream = await streamed(client, PROMPT, NEW_TOKENS, ignore_eos=True, **SAMPLINGS[place])
    assert whole.tokens == wanted
    assert stream.tokens == wanted


async def test_biases_ban_and_force(pair: System) -> None:
    async with pair.client() as client:
        plain = await generate(client, PROMPT, NEW_TOKENS, ignore_eos=True)
        banned = dict.fromkeys(map(str, plain.tokens), -100)
        other = await generate(client, PROMPT, NEW_TOKENS, ignore_eos=True, logit_bias=banned)
        forced = await generate(client, PROMPT, NEW_TOKENS, ignore_eos=True, logit_bias={"77": 100})
    assert not set(other.tokens) & set(plain.tokens)
    assert set(forced.tokens) == {77}


def test_the_official_client_gets_what_fits_its_grammar(pair: System) -> None:
    messages: Any = [{"role": "user", "content": "What do you like to eat?"}]
    with openai.OpenAI(base_url=f"{pair.url}/v1", api_key="none", max_retries=0) as client:
        model = next(iter(client.models.list())).id
        schema: Any = {"type": "json_schema", "json_schema": {"name": "meal", "schema": SCHEMA}}
        answer = client.chat.completions.create(
            model=model, messages=messages, response_format=schema, max_tokens=64, n=2, temperature=1
        )
        for choice in answer.choices:
            meal = json.loads(choice.message.content or "")
            assert meal["dish"] in ("soup", "cake")
            assert meal["spoons"] in (1, 2, 3)
            assert choice.finish_reason == "stop"
        parts = client.chat.completions.create(
            model=model, messages=messages, max_tokens=64, stream=True, extra_body={"regex": "(yes|no), (yes|no)"}
        )
        text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert re.fullmatch("(yes|no), (yes|no)", text)


def test_a_grammar_that_is_none_is_refused(pair: System) -> None:
    with openai.OpenAI(base_url=f"{pair.url}/v1", api_key="none", max_retries=0) as client:
        model = next(iter(client.models.list())).id
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model=model, prompt="a", extra_body={"regex": "(("})


def test_sglangs_frontend_language_gets_what_fits_its_grammar(pair: System) -> None:
    example = [sys.executable, str(ROOT / "examples" / "frontend_language.py"), "--url", pair.url]
    done = subprocess.run(
        [*example, "--regex", "tea", "rain"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written, said = done.stdout.split("\n\n")
    rating = "[1-9]/10"
    assert re.fullmatch(f"Here is a sentence about tea: .+\nI rate it {rating}", written, re.DOTALL), written
    assert re.fullmatch(f"tea: .+, rated '{rating}'\nrain: .+, rated '{rating}'", said.strip()), said


def test_an_echoed_prompt_is_scored_token_by_token(pair: System) -> None:
    asked: Any = {"prompt": "Once upon a time", "max_tokens": 4, "temperature": 0, "logprobs": 1}
    with openai.OpenAI(base_url=f"{pair.url}/v1", api_key="none", max_retries=0) as client:
        model = next(iter(client.models.list())).id
        plain = client.completions.create(model=model, **asked)
        echoed = client.completions.create(model=model, echo=True, **asked)
    assert echoed.choices[0].text == asked["prompt"] + plain.choices[0].text
    assert echoed.usage is not None
    found, answer = echoed.choices[0].logprobs, plain.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert answer is not None
    assert answer.tokens
    assert len(found.tokens) == len(found.token_logprobs) == echoed.usage.total_tokens
    assert found.tokens[echoed.usage.prompt_tokens :] == answer.tokens
    first: float | None = found.token_logprobs[0]
    assert first is None, "nothing comes before the first token"
    assert all(score <= 0 for score in found.token_logprobs[1:])


@pytest.mark.parametrize("choice", CALLS)
def test_a_forced_tool_call_is_plain_sglangs_whole_and_streamed(
    pair: System, references: References, choice: str
) -> None:
    asked: Any = CALLS[choice]
    [wanted] = references.chats(**PARSER)[list(CALLS).index(choice)]["choices"]
    [wanted_call] = [call["function"] for call in wanted["message"]["tool_calls"]]
    with openai.OpenAI(base_url=f"{pair.url}/v1", api_key="none", max_retries=0) as client:
        [whole] = client.chat.completions.create(**asked).choices
        pieces = [one for chunk in client.chat.completions.create(**asked, stream=True) for one in chunk.choices]
    assert whole.logprobs is not None
    tokens = [one.token for one in whole.logprobs.content or ()]
    assert tokens == [one["token"] for one in wanted["logprobs"]["content"]]
    assert whole.message.tool_calls is not None
    [call] = whole.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == (wanted_call["name"], wanted_call["arguments"])
    assert (whole.message.content or "") == (wanted["message"]["content"] or "") == ""
    assert whole.finish_reason == wanted["finish_reason"] == "tool_calls"
    assert choice in ("required", call.function.name), "it is not the function that was named"
    arguments = json.loads(call.function.arguments)
    if call.function.name == "cook":
        assert (arguments["dish"] in ("soup", "cake"), type(arguments["hot"])) == (True, bool), arguments
    else:
        assert arguments == {}
    parts = [part.function for piece in pieces for part in piece.delta.tool_calls or () if part.function]
    assert [part.name for part in parts if part.name] == [call.function.name]
    assert json.loads("".join(part.arguments or "" for part in parts)) == arguments
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["tool_calls"]
