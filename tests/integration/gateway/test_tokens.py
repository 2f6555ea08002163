"""/v1/tokenize and /v1/detokenize with a real tokenizer."""

from __future__ import annotations

from typing import Any

from tests.support.gateway.cluster import cluster
from tests.support.gateway.fake_worker import CONTEXT_TOKENS, MODEL

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What do you like to eat? " * 100}]


async def test_the_tokens_told_are_those_that_workers_get() -> None:
    async with cluster() as now:
        for path, given in (("/chat/completions", {"messages": CHAT[:1]}), ("/completions", {"prompt": "Once more"})):
            told: Any = await now.client.post("/tokenize", body={"model": MODEL, **given}, cast_to=object)
            await now.client.post(path, body={"model": MODEL, "max_tokens": 1, **given}, cast_to=object)
            assert told["tokens"] == list(now.decodes[0].submits[-1].input_ids)
            assert told["count"] == len(told["tokens"])
            assert told["max_model_len"] == CONTEXT_TOKENS


async def test_text_comes_back_as_it_was_and_special_tokens_on_demand() -> None:
    text = "Grüße, Welt: zwölf Boxkämpfer! " * 200
    async with cluster() as now:
        told: Any = await now.client.post("/tokenize", body={"prompt": [text, ""]}, cast_to=object)
        plain: Any = await now.client.post(
            "/tokenize", body={"prompt": text, "add_special_tokens": False}, cast_to=object
        )
        back: Any = await now.client.post("/detokenize", body={"tokens": told["tokens"]}, cast_to=object)
        chat: Any = await now.client.post("/tokenize", body={"messages": CHAT}, cast_to=object)
        whole: Any = await now.client.post(
            "/detokenize", body={"tokens": chat["tokens"], "skip_special_tokens": False}, cast_to=object
        )
        clean: Any = await now.client.post("/detokenize", body={"tokens": chat["tokens"]}, cast_to=object)
    assert back["text"] == back["prompt"] == [text, ""]
    assert told["tokens"][0][-plain["count"] :] == plain["tokens"]
    assert all(message["content"].strip() in whole["text"] for message in CHAT)
    assert len(clean["text"]) < len(whole["text"])
