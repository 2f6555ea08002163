"""Bodies that are sent and streams that come back."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.cli.bench_serve.apis import Asking, body_of
from tandem.cli.bench_serve.choices import Api
from tandem.cli.bench_serve.reading import MAX_LINE_BYTES, AnswerReader
from tandem.cli.bench_serve.workload import Piece, Question, token_ids

PIECES = (Piece((0, 0, 0), 5), Piece((0, 2, 1), 3))
QUESTION = Question(PIECES, 4)
USAGE = {"prompt_tokens": 8, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 5}}


def event(**document: object) -> bytes:
    return f"data: {json.dumps(document)}\n\n".encode()


def text(piece: str) -> bytes:
    return event(choices=[{"text": piece}], usage=None)


def test_a_prompt_is_the_ids_of_its_pieces() -> None:
    wanted = [token for piece in PIECES for token in token_ids(piece, 1000)]
    body = json.loads(body_of(Asking(Api.COMPLETIONS, "m", 1000), QUESTION))
    assert body["prompt"] == wanted
    assert (body["model"], body["max_tokens"], body["stream"], body["ignore_eos"]) == ("m", 4, True, True)
    assert body["stream_options"] == {"include_usage": True}
    native = json.loads(body_of(Asking(Api.GENERATE, "m", 1000), QUESTION))
    assert native["input_ids"] == wanted
    assert native["sampling_params"] == {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True}
    assert native["model"] == "m"
    assert "model" not in json.loads(body_of(Asking(Api.GENERATE, "", 1000), QUESTION)), "SGLang has one model only"


def test_a_chat_begins_alike_where_its_pieces_do() -> None:
    asking = Asking(Api.CHAT, "m", 1000, ignore_eos=False)
    body = json.loads(body_of(asking, QUESTION))
    assert "ignore_eos" not in body
    (message,) = body["messages"]
    assert len(message["content"].split()) == 8
    longer = json.loads(body_of(asking, Question((*PIECES, Piece((0, 2, 2), 3)), 4)))
    assert longer["messages"][0]["content"].startswith(message["content"])


def test_times_of_a_stream() -> None:
    reader = AnswerReader(Api.COMPLETIONS, sent_s=10.0)
    # A first event without text is no first token.
    reader.feed(text(""), 10.1)
    reader.feed(text("a"), 10.2)
    reader.feed(text("b") + text("c"), 10.25)
    reader.feed(text("d"), 10.3)
    reader.feed(event(choices=[], usage=USAGE), 10.3)
    reader.feed(b"data: [DONE]\n\n", 10.4)
    reader.finish()
    assert reader.error == ""
    assert reader.ttft_ms == pytest.approx(200)
    assert reader.gaps_ms == pytest.approx([50, 0, 50])
    assert reader.ended_s == 10.4
    assert (reader.prompt_tokens, reader.new_tokens, reader.cached_tokens) == (8, 4, 5)


def test_generate_tells_how_many_tokens_came_at_once() -> None:
    def native(words: str, tokens: int) -> bytes:
        return event(text=words, meta_info={"completion_tokens": tokens, "prompt_tokens": 3, "cached_tokens": 1})

    reader = AnswerReader(Api.GENERATE, sent_s=0.0)
    reader.feed(native("a", 1), 0.1)
    reader.feed(native("a b c d", 4), 0.4)
    reader.feed(native("a b c d", 4), 0.5)
    reader.feed(b"data: [DONE]\n\n", 0.5)
    reader.finish()
    assert reader.error == ""
    assert reader.gaps_ms == pytest.approx([100, 100, 100])
    assert (reader.prompt_tokens, reader.new_tokens, reader.cached_tokens) == (3, 4, 1)


def test_a_token_that_has_no_text_yet_has_come() -> None:
    def native(words: str, tokens: int) -> bytes:
        return event(text=words, meta_info={"completion_tokens": tokens})

    reader = AnswerReader(Api.GENERATE, sent_s=0.0)
    for now_s, words, tokens in ((0.05, "", 0), (0.1, "", 1), (0.2, "", 2), (0.3, "a", 3), (0.4, "a", 4)):
        reader.feed(native(words, tokens), now_s)
    reader.feed(b"data: [DONE]\n\n", 0.4)
    reader.finish()
    assert (reader.error, reader.ttft_ms) == ("", pytest.approx(100))
    assert reader.gaps_ms == pytest.approx([100, 100, 100])


@pytest.mark.parametrize("part", ["content", "reasoning_content"])
def test_text_of_a_chat(part: str) -> None:
    reader = AnswerReader(Api.CHAT, sent_s=0.0)
    reader.feed(event(choices=[{"delta": {"role": "assistant", "content": ""}}]), 0.1)
    reader.feed(event(choices=[{"delta": {part: "a"}}]), 0.2)
    reader.feed(b"data: [DONE]\n\n", 0.3)
    reader.finish()
    assert (reader.error, reader.ttft_ms, reader.new_tokens) == ("", pytest.approx(200), 1)


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"", "broken"),
        (text("a"), "broken"),
        (b"data: [DONE]\n\n", "empty"),
        (text("a") + b"data: nonsense\n\n", "protocol"),
        (b"data: 5\n\n", "protocol"),
        (event(other=1), "protocol"),
        (text("a") + event(error={"code": "worker_lost", "message": "gone"}), "stream_worker_lost"),
        (text("a") + event(error={"message": "gone"}), "stream_error"),
        (event(error="gone"), "stream_error"),
        (b"x" * (MAX_LINE_BYTES + 1), "protocol"),
    ],
)
def test_what_is_wrong_has_a_name(stream: bytes, error: str) -> None:
    reader = AnswerReader(Api.COMPLETIONS, sent_s=0.0)
    reader.feed(stream, 0.1)
    reader.finish()
    assert reader.error == error


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), max_size=8))
def test_how_bytes_are_cut_does_not_matter(cuts: list[int]) -> None:
    whole = text("a") + text("b") + event(choices=[], usage=USAGE) + b": comment\n\ndata: [DONE]\r\n\r\n"
    reader = AnswerReader(Api.COMPLETIONS, sent_s=0.0)
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    for number, (start, end) in enumerate(pairwise(edges)):
        reader.feed(whole[start:end], float(number))
    reader.finish()
    assert (reader.error, reader.new_tokens, len(reader.gaps_ms)) == ("", 4, 1)
