"""Sampling parameters and grammars through the whole system to real SGLang, token for token against plain SGLang."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.system.asking import generate, prompt_of, streamed
from tests.support.system.reference import References
from tests.support.system.system import System, running_system

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


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    """What SGLang answers by itself."""
    return References(tmp_path_factory.mktemp("reference"), [PROMPT] * len(SAMPLINGS), NEW_TOKENS, samplings=SAMPLINGS)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One prefill and one decode worker."""
    with running_system(tmp_path_factory.mktemp("pair")) as system:
        yield system


@pytest.mark.parametrize("place", range(len(SAMPLINGS)), ids=NAMES)
async def test_each_is_as_plain_sglang_has_it_whole_and_streamed(
    pair: System, references: References, place: int
) -> None:
    wanted, greedy = references.answers()[place], references.answers()[0]
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
