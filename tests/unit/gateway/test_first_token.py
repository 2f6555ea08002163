"""The first token comes from whichever leg has it first, and the client hears it once."""

from __future__ import annotations

import pytest

from tandem.core.errors import ErrorReason, TandemError
from tandem.gateway.routing.first_token import FirstToken, comes_early
from tandem.v1 import session_pb2

PLAIN = {"max_new_tokens": 2, "skip_special_tokens": True}


def delta(*token_ids: int, text: str = "", end: bool = False) -> session_pb2.Delta:
    """News of a room."""
    finish = session_pb2.Finish(kind=session_pb2.FINISH_KIND_LENGTH) if end else None
    return session_pb2.Delta(room=7, token_ids=token_ids, text=text, finish=finish)


@pytest.mark.parametrize(
    ("sampling", "logprobs", "stream", "early"),
    [
        ({}, None, True, True),
        ({"json_schema": "{}", "temperature": 1.0}, None, True, True),
        ({}, None, False, False),
        ({}, session_pb2.LogprobOptions(), True, False),
        ({"stop": ["x"]}, None, True, False),
        ({"stop_token_ids": [4]}, None, True, False),
        ({"skip_special_tokens": False}, None, True, False),
        ({"max_new_tokens": 1}, None, True, False),
    ],
)
def test_who_gets_it_early(sampling, logprobs, stream: bool, early: bool) -> None:
    assert comes_early(session_pb2.Sampling(**{**PLAIN, **sampling}), logprobs, stream=stream) is early


def test_decode_says_the_rest() -> None:
    first = FirstToken()
    assert first.from_prefill(delta(5, text=" a")) == delta(5, text=" a")
    assert first.from_decode(delta(5, 6, text=" a b", end=True)) == delta(6, text=" b", end=True)
    assert first.from_decode(delta(5, text=" a")) == delta(5, text=" a"), "only what was said is left out, once"


def test_text_that_lags_behind_is_left_out_as_it_comes() -> None:
    first = FirstToken()
    first.from_prefill(delta(5, text="abc"))
    assert first.from_decode(delta(5, 6, text="a")) == delta(6)
    assert first.from_decode(delta(7, text="bcd")) == delta(7, text="d")


def test_a_decode_that_was_faster_is_not_repeated() -> None:
    first = FirstToken()
    assert first.from_decode(delta(5, text="a")) == delta(5, text="a")
    assert first.from_prefill(delta(5, text="a")) is None


def test_a_token_without_text_waits_for_decode() -> None:
    first = FirstToken()
    assert first.from_prefill(delta(5)) is None
    assert first.from_decode(delta(5, 6, text="é")) == delta(5, 6, text="é")


@pytest.mark.parametrize("other", [delta(6, text="a"), delta(5, text="b"), delta(end=True)])
def test_another_first_token_is_an_error(other: session_pb2.Delta) -> None:
    first = FirstToken()
    first.from_prefill(delta(5, text="a"))
    with pytest.raises(TandemError) as failure:
        first.from_decode(other)
    assert failure.value.reason is ErrorReason.TRANSFER_FAILED


def test_another_attempt_goes_on_from_it() -> None:
    first = FirstToken()
    first.from_prefill(delta(5, text="a"))
    first.from_decode(delta(5, text="a"))
    first.new_attempt()
    assert first.from_prefill(delta(5, text="a")) is None, "the client has it"
    assert first.from_decode(delta(5, 6, text="ab")) == delta(6, text="b")
