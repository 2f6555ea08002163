"""The small parts: mailbox, tokenizer, answers, preparation."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import orjson
import pytest

from tandem.core.errors import CATALOGUE, ErrorReason, TandemError
from tandem.gateway.api.generate_schema import read_generate
from tandem.gateway.api.openai_answers import OpenAiAnswer
from tandem.gateway.api.openai_schema import SchemaLimits, read_chat
from tandem.gateway.api.problems import problem_of
from tandem.gateway.calls import Api, ChatPrompt, GenerateCall, IdsPrompt, Item, Message, TextPrompt
from tandem.gateway.mailbox import Mailbox, News
from tandem.gateway.text.tokenizer import PromptTokenizer
from tandem.gateway.transcript import Transcript
from tandem.gateway.web.prepare import Catalog, Preparer
from tandem.v1 import session_pb2
from tests.support.gateway.doubles import LetterEncoder, Letters, NotingWorkers, finish, sequence, tokens

LIMITS = SchemaLimits(max_n=4, max_batch=4)


async def test_a_mailbox_gives_all_that_waits_then_the_end() -> None:
    box = Mailbox(max_tokens=10)
    reader = asyncio.create_task(box.take())
    await asyncio.sleep(0)
    assert box.put(0, tokens(1, 5))
    assert box.put(1, tokens(2, 6))
    assert [news.index for news in await reader] == [0, 1]
    box.close()
    assert await box.take() == []


async def test_a_mailbox_gives_what_waits_before_the_error() -> None:
    box = Mailbox(max_tokens=10)
    box.put(0, tokens(1, 5))
    box.close(TandemError(ErrorReason.PEER_LOST))
    assert len(await box.take()) == 1
    with pytest.raises(TandemError):
        await box.take()


def test_a_mailbox_is_bounded_but_takes_one_large_piece() -> None:
    box = Mailbox(max_tokens=2)
    assert box.put(0, tokens(1, 5, 6, 7))
    assert not box.put(0, tokens(1, 8))


async def test_a_long_text_is_tokenized_beside_the_event_loop() -> None:
    go_on = threading.Event()

    class Slow(LetterEncoder):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            assert go_on.wait(20), "the event loop was held up"
            return super().encode(text, add_special_tokens=add_special_tokens)

    tokenizer = PromptTokenizer(Slow())
    task = asyncio.create_task(tokenizer.ids(TextPrompt("x" * 5000), "prompt"))
    await asyncio.sleep(0)
    go_on.set()
    assert len(await task) == 5000
    tokenizer.close()


async def test_chats_are_rendered_and_ids_are_taken_as_they_are() -> None:
    tokenizer = PromptTokenizer(LetterEncoder())
    chat = ChatPrompt((Message("user", "a"),))
    assert await tokenizer.ids(chat, "messages") == tuple(map(ord, "user:a;"))
    assert await tokenizer.ids(IdsPrompt((3, 4)), "prompt") == (3, 4)


async def test_tokens_that_are_not_asked_for_explicitly_fit_into_what_is_left() -> None:
    preparer = Preparer(Catalog(NotingWorkers(), "x"), Letters(), default_max_tokens=64)
    for prompt, default, wanted in ((10, 0, 64), (60, 0, 40), (10, 16, 16), (99, 16, 1)):
        item = Item(IdsPrompt((1,) * prompt), "prompt", session_pb2.Sampling(), default_new_tokens=default)
        [one] = await preparer.prepare(GenerateCall(Api.COMPLETION, "", (item,)))
        assert one.sampling.max_new_tokens == wanted


async def test_a_seed_repeats_the_request_but_not_its_answers() -> None:
    preparer = Preparer(Catalog(NotingWorkers(), "x"), Letters(), default_max_tokens=8)
    item = Item(IdsPrompt((1,)), "prompt", session_pb2.Sampling(seed=2**63 - 1), n=2)
    first = await preparer.prepare(GenerateCall(Api.COMPLETION, "", (item,)))
    again = await preparer.prepare(GenerateCall(Api.COMPLETION, "", (item,)))
    assert [one.sampling.seed for one in first] == [one.sampling.seed for one in again] == [2**63 - 1, 0]


def test_null_counts_as_absent_and_harmless_values_pass() -> None:
    body = {"messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}]}], "n": None, "tools": []}
    call = read_chat({**body, "logit_bias": {}, "user": "me"}, LIMITS)
    prompt = call.items[0].prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages == (Message("system", "a"),)


def test_biases_are_bounded_in_number() -> None:
    body = {"messages": [{"role": "user", "content": "a"}]}
    most = {str(token): 1 for token in range(1024)}
    assert len(read_chat({**body, "logit_bias": most}, LIMITS).items[0].sampling.logit_bias) == 1024
    with pytest.raises(TandemError, match="'logit_bias' holds 1025 tokens; at most 1024"):
        read_chat({**body, "logit_bias": {**most, "1024": 1}}, LIMITS)


def test_generate_takes_one_or_a_batch() -> None:
    assert read_generate({"text": "a"}, LIMITS).single
    assert read_generate({"input_ids": [1, 2]}, LIMITS).single
    assert not read_generate({"text": ["a"]}, LIMITS).single
    assert not read_generate({"input_ids": [[1], [2]]}, LIMITS).single
    assert not read_generate({"text": "a", "sampling_params": {"n": 2}}, LIMITS).single


def test_chat_events_begin_with_the_role_and_end_with_done() -> None:
    item = Item(ChatPrompt((Message("user", "a"),)), "messages", session_pb2.Sampling())
    call = GenerateCall(Api.CHAT, "", (item,), stream=True, include_usage=True)
    answer = OpenAiAnswer(call, "tiny", "r1", 5, [Transcript(sequence())], chr)
    written = answer.events([News(0, tokens(1, 65, text="A"))])
    written += answer.events([News(0, tokens(1, 66))])
    written += answer.events([News(0, finish(1, session_pb2.FINISH_KIND_STOP, cached_tokens=2))]) + answer.end()
    *events, done, rest = written.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    found = [orjson.loads(event.removeprefix(b"data: ")) for event in events]
    assert [one["choices"][0]["delta"] if one["choices"] else None for one in found] == [
        {"role": "assistant", "content": ""},
        {"content": "A"},
        {},
        None,
    ]
    assert [one["choices"][0]["finish_reason"] for one in found[:-1]] == [None, None, "stop"]
    assert found[-1]["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert {one["id"] for one in found} == {"chatcmpl-r1"}
    assert {one["object"] for one in found} == {"chat.completion.chunk"}


def test_the_last_text_of_a_completion_says_how_it_ended() -> None:
    sampling, scored = session_pb2.Sampling(), session_pb2.LogprobOptions(top=1)
    ended = session_pb2.Finish(kind=session_pb2.FINISH_KIND_LENGTH)
    for logprobs in (None, scored):
        item = Item(IdsPrompt((1,)), "prompt", sampling, logprobs=logprobs)
        call = GenerateCall(Api.COMPLETION, "", (item,), stream=True)
        answer = OpenAiAnswer(call, "tiny", "r1", 5, [Transcript(replace(sequence(), item=item))], chr)
        last = tokens(1, 66, text="B")
        last.finish.CopyFrom(ended)
        last.logprobs.add(token_id=66, logprob=-1)
        written = answer.events([News(0, tokens(1, 65, text="A"))]) + answer.events([News(0, last)])
        choices = [orjson.loads(one.removeprefix(b"data: "))["choices"][0] for one in written.strip().split(b"\n\n")]
        assert [(one["text"], one["finish_reason"]) for one in choices] == [("A", None), ("B", "length")]
        found = choices[-1]["logprobs"]
        assert (found and found["tokens"]) == (logprobs and ["B"])


@pytest.mark.parametrize("api", [Api.CHAT, Api.COMPLETION])
def test_events_have_the_counts_so_far_where_they_are_asked_for(api: Api) -> None:
    item = Item(IdsPrompt((1,)), "prompt", session_pb2.Sampling())
    call = GenerateCall(api, "", (item,), stream=True, include_usage=True, continuous_usage=True)
    answer = OpenAiAnswer(call, "tiny", "r1", 5, [Transcript(sequence())], chr)
    written = b"".join(answer.events([News(0, tokens(1, 65 + place, text="a"))]) for place in range(3)) + answer.end()
    *events, _, _ = written.split(b"\n\n")
    counted = [orjson.loads(one.removeprefix(b"data: "))["usage"]["completion_tokens"] for one in events]
    assert counted == [*([1] if api is Api.CHAT else []), 1, 2, 3, 3]


@pytest.mark.parametrize("reason", ErrorReason)
def test_every_reason_has_an_answer_and_our_insides_stay_ours(reason: ErrorReason) -> None:
    problem = problem_of(TandemError(reason, "secret detail"))
    assert problem.status == CATALOGUE[reason].http_status
    assert ("Retry-After" in problem.headers) == (problem.status in (429, 503))
    hidden = reason in (ErrorReason.INTERNAL, ErrorReason.PROTOCOL_VIOLATION)
    assert (b"secret detail" in problem.json()) != hidden
