"""/v1/tokenize and /v1/detokenize: what they answer, and what they refuse. One token per character."""

from __future__ import annotations

from typing import Any

import pytest

from tandem.gateway.admission.slots import Slots
from tests.support.gateway.doubles import CONTEXT, AppLimits, NotingWorkers, http_client, one_each

HELLO = [{"role": "user", "content": "hi"}]
IDS = [104, 105]


async def asked(path: str, body: dict[str, Any], limits: AppLimits | None = None) -> tuple[int, Any]:
    """Status and document."""
    async with http_client(one_each(), limits) as client:
        response = await client.post(path, json=body)
    return response.status_code, response.json()


@pytest.mark.parametrize("path", ["/v1/tokenize", "/tokenize"])
async def test_a_text_becomes_tokens(path: str) -> None:
    wanted = {"tokens": IDS, "count": 2, "max_model_len": CONTEXT}
    assert await asked(path, {"model": "tiny", "prompt": "hi"}) == (200, wanted)


async def test_texts_become_lists() -> None:
    wanted = {"tokens": [IDS, [], [97]], "count": [2, 0, 1], "max_model_len": CONTEXT}
    assert await asked("/v1/tokenize", {"prompt": ["hi", "", "a"]}) == (200, wanted)


async def test_messages_become_what_a_chat_would_send() -> None:
    workers = one_each()
    async with http_client(workers) as client:
        told = (await client.post("/v1/tokenize", json={"messages": HELLO})).json()
    assert told["tokens"] == list(map(ord, "user:hi;"))
    assert told["count"] == 8


@pytest.mark.parametrize("path", ["/v1/detokenize", "/detokenize"])
async def test_tokens_become_a_text_under_either_name(path: str) -> None:
    assert await asked(path, {"tokens": IDS}) == (200, {"text": "hi", "prompt": "hi"})
    assert await asked(path, {"tokens": []}) == (200, {"text": "", "prompt": ""})
    assert await asked(path, {"tokens": [IDS, []]}) == (200, {"text": ["hi", ""], "prompt": ["hi", ""]})


async def test_no_worker_is_needed() -> None:
    async with http_client(NotingWorkers()) as client:
        assert (await client.post("/v1/tokenize", json={"prompt": "hi"})).status_code == 200
        assert (await client.post("/v1/detokenize", json={"tokens": IDS})).status_code == 200


REFUSED = [
    ("/v1/tokenize", {}, "prompt", "or 'messages' must be given"),
    ("/v1/tokenize", {"prompt": "a", "messages": HELLO}, "prompt", "not both"),
    ("/v1/tokenize", {"prompt": 7}, "prompt", "a text or a list of texts, not a number"),
    ("/v1/tokenize", {"prompt": [1, 2]}, "prompt", "a text or a list of texts"),
    ("/v1/tokenize", {"prompt": []}, "prompt", "1..4 are allowed"),
    ("/v1/tokenize", {"prompt": ["a"] * 5}, "prompt", "1..4 are allowed"),
    ("/v1/tokenize", {"prompt": "x" * 301}, "prompt", "has 301 characters; at most 300"),
    ("/v1/tokenize", {"prompt": ["x" * 200] * 2}, "prompt", "has 400 characters; at most 300"),
    ("/v1/tokenize", {"messages": [{"role": "user", "content": "x" * 301}]}, "messages", "at most 300"),
    ("/v1/tokenize", {"messages": HELLO, "add_special_tokens": True}, "add_special_tokens", "only with 'prompt'"),
    ("/v1/tokenize", {"prompt": "a", "continue_final_message": True}, "continue_final_message", "only with 'messages'"),
    ("/v1/tokenize", {"messages": HELLO, "add_generation_prompt": False}, "add_generation_prompt", "not supported"),
    ("/v1/tokenize", {"prompt": "a", "promt": "b"}, "promt", "Did you mean 'prompt'?"),
    ("/v1/detokenize", {}, "tokens", "must be a list of token ids"),
    ("/v1/detokenize", {"tokens": "hi"}, "tokens", "not a string"),
    ("/v1/detokenize", {"tokens": [1, "a"]}, "tokens", "whole numbers"),
    ("/v1/detokenize", {"tokens": [-1]}, "tokens", "whole numbers"),
    ("/v1/detokenize", {"tokens": [[1], 2]}, "tokens[1]", "a list of token ids, not a number"),
    ("/v1/detokenize", {"tokens": [1000]}, "tokens", "0..999"),
    ("/v1/detokenize", {"tokens": [[1]] * 5}, "tokens", "1..4 are allowed"),
    ("/v1/detokenize", {"tokens": [[1] * 200, [1] * 200]}, "tokens", "has 400 tokens; at most 300"),
    ("/v1/detokenize", {"tokens": [1], "skip_special_tokens": "no"}, "skip_special_tokens", "true or false"),
]


@pytest.mark.parametrize(("path", "body", "field", "says"), REFUSED)
async def test_bad_input_is_refused_by_name(path: str, body: dict[str, Any], field: str, says: str) -> None:
    status, document = await asked(path, body)
    assert status == 400, document
    error = document["error"]
    assert (error["param"], error["code"]) == (field, "invalid_argument")
    assert says in error["message"]
    assert f"'{field}'" in error["message"]


async def test_unknown_models_and_giant_bodies() -> None:
    for path, body in (("/v1/tokenize", {"prompt": "a"}), ("/v1/detokenize", {"tokens": [1]})):
        assert (await asked(path, {**body, "model": "huge"}))[0] == 404
        assert (await asked(path, {**body, "model": "x" * 5000}))[0] == 413


async def test_who_finds_no_place_is_told_to_come_back_and_every_place_is_given_back() -> None:
    slots = Slots(1)
    async with http_client(one_each(), AppLimits(token_slots=slots)) as client:
        with slots.holding():
            refused = await client.post("/v1/tokenize", json={"prompt": "a"})
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        for prompt in ("a", 7, "a"):
            await client.post("/v1/tokenize", json={"prompt": prompt})
    assert slots.used == 0
