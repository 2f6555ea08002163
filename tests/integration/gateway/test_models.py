"""Several models behind one gateway: each has its workers and its tokenizer; they come and go while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tandem.core.ids import Role
from tandem.v1 import session_pb2
from tests.support.gateway.byte_model import make_byte_model
from tests.support.gateway.cluster import Cluster, cluster
from tests.support.gateway.fake_worker import MODEL, FakeWorker, Send, count_up, end_of, hand_over
from tests.support.system.asking import metric

TEXT = "Once upon a time"


@asynccontextmanager
async def workers_of(now: Cluster, model: str, tokenizer: str) -> AsyncIterator[list[FakeWorker]]:
    """One worker of each role that serve one more model."""
    scripts = ((Role.PREFILL, hand_over), (Role.DECODE, count_up))
    pair = [FakeWorker(f"{role.value}-{model}", role, script, model, tokenizer) for role, script in scripts]
    for one in pair:
        await one.start(now.bootstrap)
    for one in pair:
        await one.wait_until(lambda worker: worker.sessions == 1)
    try:
        yield pair
    finally:
        for one in pair:
            await one.leave(now.bootstrap)
            await one.wait_until(lambda worker: worker.sessions == 0)
            await one.die()


async def models(now: Cluster) -> list[str]:
    return [one.id async for one in now.client.models.list()]


async def complete(now: Cluster, model: str, text: str = TEXT) -> httpx.Response:
    return await now.http.post("/v1/completions", json={"model": model, "prompt": text, "max_tokens": 3})


async def test_each_model_has_its_own_workers_and_its_own_tokenizer(tmp_path: Path) -> None:
    path = make_byte_model(tmp_path / "bytes")
    async with cluster() as now, workers_of(now, "bytes", str(path)) as (prefill, decode):
        assert await models(now) == ["bytes", MODEL]
        tiny, bytewise = await complete(now, MODEL), await complete(now, "bytes")
        assert (tiny.status_code, bytewise.status_code) == (200, 200)
        assert len(now.prefills[0].submits) == len(now.decodes[0].submits) == 1
        assert len(prefill.submits) == len(decode.submits) == 1
        assert len(decode.submits[0].input_ids) == len(TEXT) > len(now.decodes[0].submits[0].input_ids)
        assert bytewise.json()["usage"]["prompt_tokens"] == len(TEXT)
        counts = [
            (await now.http.post("/v1/tokenize", json={"model": model, "prompt": TEXT})).json()["count"]
            for model in (MODEL, "bytes")
        ]
        assert counts == [tiny.json()["usage"]["prompt_tokens"], len(TEXT)]
        listed = {one["id"]: one["root"] for one in (await now.http.get("/v1/models")).json()["data"]}
        assert listed["bytes"] == str(path)
        assert Path(listed[MODEL]).name == MODEL
        for model, tokens in ((MODEL, counts[0]), ("bytes", len(TEXT))):
            assert await metric(now.http, f'tandem_gateway_tokens_total{{kind="prompt",model="{model}"}}') == tokens


async def test_log_probabilities_are_told_in_the_words_of_their_model(tmp_path: Path) -> None:
    path = make_byte_model(tmp_path / "bytes")

    async def end_at_once(submit: session_pb2.Submit, send: Send) -> None:
        send(end_of(submit))

    async with cluster(decode=[end_at_once]) as now, workers_of(now, "bytes", str(path)) as (_, decode):
        decode.script = end_at_once
        assert await models(now) == ["bytes", MODEL]
        asked = {"prompt": [70, 71], "max_tokens": 1, "echo": True, "logprobs": 0, "model": "bytes"}
        bytewise = (await now.http.post("/v1/completions", json=asked)).json()
        tiny = (await now.http.post("/v1/completions", json={**asked, "model": MODEL})).json()
        assert bytewise["choices"][0]["logprobs"]["tokens"][:2] != tiny["choices"][0]["logprobs"]["tokens"][:2]
        assert bytewise["choices"][0]["text"] == "".join(bytewise["choices"][0]["logprobs"]["tokens"])


async def test_a_model_that_goes_may_come_back_and_one_that_never_was_is_not_found() -> None:
    async with cluster() as now:
        async with workers_of(now, "guest", ""):
            assert await models(now) == ["guest", MODEL]
            assert (await complete(now, "guest")).status_code == 200
        assert await models(now) == [MODEL]
        gone, never = await complete(now, "guest"), await complete(now, "nobody")
        assert (gone.status_code, gone.json()["error"]["code"]) == (503, "no_worker")
        assert "Retry-After" in gone.headers
        assert never.status_code == 404
        error = never.json()["error"]
        assert (error["code"], error["param"], error["type"]) == ("unknown_model", "model", "not_found_error")
        assert MODEL in error["message"]
        async with workers_of(now, "guest", ""):
            assert await models(now) == ["guest", MODEL]
            assert (await complete(now, "guest")).status_code == 200


async def test_the_tokenizer_of_the_settings_wins_and_a_named_model_without_workers_is_awaited(tmp_path: Path) -> None:
    path = make_byte_model(tmp_path / "bytes")
    named = {"guest": str(path), "later": str(path)}
    async with cluster(tokenizers=named) as now, workers_of(now, "guest", "/not/here"):
        assert await models(now) == ["guest", MODEL]
        assert (await complete(now, "guest")).json()["usage"]["prompt_tokens"] == len(TEXT)
        later = await complete(now, "later")
        assert (later.status_code, later.json()["error"]["code"]) == (503, "no_worker")


async def test_a_model_whose_tokenizer_cannot_be_read_fails_alone_and_says_so(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    async with cluster() as now, workers_of(now, "guest", missing):
        assert await models(now) == ["guest", MODEL]
        failed = await complete(now, "guest")
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "no_tokenizer")
        assert missing in failed.json()["error"]["message"]
        assert (await complete(now, MODEL)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/tokenize", "/v1/messages/count_tokens"])
async def test_with_several_models_the_request_must_name_one(path: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    async with cluster() as now, workers_of(now, "guest", ""):
        assert await models(now) == ["guest", MODEL]
        refused = await now.http.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
        assert "guest" in refused.json()["error"]["message"]
