"""SGLang's /generate."""

from __future__ import annotations

import itertools

import orjson

from tests.support.gateway.cluster import cluster
from tests.support.gateway.fake_worker import FIRST_TOKEN


async def test_the_request_of_the_original_demo() -> None:
    async with cluster() as now:
        response = await now.http.post(
            "/generate",
            content='{"text": "Let me tell you a lonnng story ", "sampling_params": {"temperature": 0}}',
            headers={"Content-Type": "application/json"},
        )
        answer = response.json()
        [submit] = now.decodes[0].submits
    assert response.status_code == 200
    assert answer["text"].startswith("t0 t1 ")
    assert answer["output_ids"] == list(range(FIRST_TOKEN, FIRST_TOKEN + 128))
    meta = answer["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 128}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (len(submit.input_ids), 128, 1)
    assert meta["e2e_latency"] > 0
    assert meta["id"] == response.headers["x-request-id"] == submit.request_id
    assert submit.sampling.temperature == 0
    assert submit.sampling.HasField("temperature")


async def test_a_batch_with_parameters_for_each() -> None:
    async with cluster() as now:
        response = await now.http.post(
            "/generate",
            json={
                "text": ["a", "b"],
                "rid": ["first", "second"],
                "sampling_params": [{"max_new_tokens": 1}, {"max_new_tokens": 2}],
            },
        )
    answers = response.json()
    assert [answer["text"] for answer in answers] == ["t0 ", "t0 t1 "]
    assert [answer["meta_info"]["id"] for answer in answers] == ["first", "second"]


async def test_a_stream_says_all_of_the_text_so_far() -> None:
    async with cluster() as now:
        body = {"input_ids": [5, 6], "stream": True, "sampling_params": {"max_new_tokens": 3}}
        response = await now.http.post("/generate", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    states = [orjson.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert states[-1]["text"] == "t0 t1 t2 "
    assert states[-1]["meta_info"]["finish_reason"] == {"type": "length", "length": 3}
    for before, after in itertools.pairwise(states):
        assert after["text"].startswith(before["text"])
        assert before["meta_info"]["finish_reason"] is None


async def test_log_probabilities_of_prompt_and_answer() -> None:
    async with cluster() as now:
        body = {
            "input_ids": [5, 6],
            "sampling_params": {"max_new_tokens": 1},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": 2,
            "return_text_in_logprobs": True,
        }
        meta = (await now.http.post("/generate", json=body)).json()["meta_info"]
    assert [pair[:2] for pair in meta["input_token_logprobs"]] == [[-2.0, 5], [-2.0, 6]]
    [[logprob, token_id, text]] = meta["output_token_logprobs"]
    assert (logprob, token_id) == (-0.5, FIRST_TOKEN)
    assert isinstance(text, str)
    assert [top[:2] for top in meta["output_top_logprobs"][0]] == [[-0.5, FIRST_TOKEN], [-1.5, FIRST_TOKEN + 1]]
