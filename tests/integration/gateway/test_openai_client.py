"""The official openai client drives the gateway."""

from __future__ import annotations

import openai
import pytest

from tests.support.gateway.cluster import cluster
from tests.support.gateway.fake_worker import MODEL

HELLO = [{"role": "user", "content": "hello"}]


async def test_chat() -> None:
    async with cluster() as now:
        answer = await now.client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=3)
        assert answer.object == "chat.completion"
        assert answer.choices[0].message.content == "t0 t1 t2 "
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].finish_reason == "length"
        [submit] = now.decodes[0].submits
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(submit.input_ids)
        assert answer.usage.completion_tokens == 3
        assert now.prefills[0].submits[0].room == submit.room
        assert submit.model == MODEL
        assert not now.prefills[0].cancels


async def test_chat_stream_with_usage() -> None:
    async with cluster() as now:
        stream = await now.client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=3, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "t0 t1 t2 "
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


async def test_n_answers_of_a_batch_of_prompts() -> None:
    async with cluster() as now:
        answer = await now.client.completions.create(
            model=MODEL, prompt=["a", "b"], n=2, max_tokens=2, seed=5, logprobs=2
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert {choice.text for choice in answer.choices} == {"t0 t1 "}
        assert sorted(submit.sampling.seed for submit in now.decodes[0].submits) == [5, 5, 6, 6]
        assert len({submit.room for submit in now.decodes[0].submits}) == 4
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.token_logprobs == [-0.5, -0.5]
        assert len(logprobs.tokens or []) == len(logprobs.text_offset or []) == 2
        assert [len(top) for top in logprobs.top_logprobs or []] == [2, 2]


async def test_completion_stream_of_token_ids() -> None:
    async with cluster() as now:
        stream = await now.client.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=2, stream=True)
        texts = [chunk.choices[0].text async for chunk in stream]
        assert "".join(texts) == "t0 t1 "
        assert list(now.decodes[0].submits[0].input_ids) == [5, 6, 7]


async def test_echo_begins_every_answer_with_its_prompt() -> None:
    async with cluster() as now:
        answer = await now.client.completions.create(
            model=MODEL, prompt=["One", "Two"], n=2, best_of=2, max_tokens=2, echo=True
        )
        assert [choice.text for choice in answer.choices] == ["Onet0 t1 "] * 2 + ["Twot0 t1 "] * 2
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 8, "the prompt said again is no answer"
        ids = list(now.decodes[0].submits[0].input_ids)
        again = await now.client.completions.create(model=MODEL, prompt=ids, max_tokens=1, echo=True)
        assert again.choices[0].text in ("Onet0 ", "Twot0 ")
        stream = await now.client.completions.create(model=MODEL, prompt="One", max_tokens=2, echo=True, stream=True)
        chunks = [chunk.choices[0].text async for chunk in stream]
    assert chunks[0] == "One"
    assert "".join(chunks) == "Onet0 t1 "


async def test_echo_with_log_probabilities_scores_the_prompt() -> None:
    async with cluster() as now:
        answer = await now.client.completions.create(
            model=MODEL,
            prompt=[5, 6, 7],
            max_tokens=2,
            echo=True,
            logprobs=1,
            extra_body={"skip_special_tokens": False},
        )
        assert now.prefills[0].submits[0].logprobs.prompt
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs == [-2.0] * 3 + [-0.5] * 2
    assert len(logprobs.tokens or []) == len(logprobs.top_logprobs or []) == 5
    assert logprobs.text_offset == [len("".join((logprobs.tokens or [])[:place])) for place in range(5)]


async def test_chat_log_probabilities() -> None:
    async with cluster() as now:
        answer = await now.client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=1, logprobs=True, top_logprobs=2
        )
    assert answer.choices[0].logprobs is not None
    [token] = answer.choices[0].logprobs.content or []
    assert token.logprob == -0.5
    assert bytes(token.bytes or []) == token.token.encode()
    assert [top.logprob for top in token.top_logprobs] == [-0.5, -1.5]


async def test_sampling_arrives_as_it_was_asked_for() -> None:
    async with cluster() as now:
        await now.client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            max_tokens=4,
            temperature=0.5,
            top_p=0.25,
            stop=["x", "yy"],
            frequency_penalty=1,
            response_format={"type": "json_object"},
            logit_bias={"7": -100, "8": 2.5},
            extra_body={"top_k": 3, "min_p": 0.125, "ignore_eos": True},
        )
        sampling = now.decodes[0].submits[0].sampling
        assert now.prefills[0].submits[0].sampling == sampling
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p) == (4, 0.5, 0.25)
    assert (list(sampling.stop), sampling.top_k, sampling.min_p) == (["x", "yy"], 3, 0.125)
    assert (sampling.frequency_penalty, sampling.ignore_eos) == (1, True)
    assert dict(sampling.logit_bias) == {7: -100, 8: 2.5}
    assert sampling.json_schema == '{"type": "object"}'
    assert not sampling.HasField("presence_penalty"), "what is not asked for is the engine's to choose"


async def test_models_and_errors() -> None:
    async with cluster() as now:
        assert [model.id async for model in now.client.models.list()] == [MODEL]
        assert (await now.client.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError, match=MODEL):
            await now.client.chat.completions.create(model="huge", messages=HELLO)
        with pytest.raises(openai.BadRequestError, match="temperature"):
            await now.client.chat.completions.create(model=MODEL, messages=HELLO, temperature=-1)
