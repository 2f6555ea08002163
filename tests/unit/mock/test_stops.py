"""How answers end: stops, limits, the end of the text; against the oracle, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.engine.mock.answer import compose
from tandem.engine.mock.vocabulary import Vocabulary, built_in, from_tokenizer
from tandem.engine.port import FinishKind, LogprobOptions, Sampling
from tests.support.mock.oracle import Oracle
from tests.support.mock.pair import oracle_of, prompt_of

PROMPT = [5, 6, 7, 8, 9]


def letters(text: str) -> tuple[list[int], Vocabulary]:
    """A text as tokens of one or two letters, and a vocabulary that says them; token 0 ends."""
    pieces = ("</s>", "a", "b", "c", "ab", "bc")
    tokens = {piece: token for token, piece in enumerate(pieces)}
    return [tokens[piece] for piece in text.split(",")], Vocabulary(pieces, built_in(6).choices, frozenset({0}), 0)


@pytest.mark.parametrize(
    ("said", "sampling", "expected"),
    [
        ("a,b,c", {}, ([1, 2, 3], "abc", FinishKind.LENGTH, "", None)),
        ("a,</s>,c", {}, ([1, 0], "a", FinishKind.STOP, "", 0)),
        ("a,</s>,c", {"ignore_eos": True}, ([1, 0, 3], "ac", FinishKind.LENGTH, "", None)),
        (
            "a,</s>,c",
            {"ignore_eos": True, "skip_special_tokens": False},
            ([1, 0, 3], "a</s>c", FinishKind.LENGTH, "", None),
        ),
        ("a,</s>,c", {"min_new_tokens": 3}, ([1, 0, 3], "ac", FinishKind.LENGTH, "", None)),
        ("a,b,c", {"stop_token_ids": (2,)}, ([1, 2], "a", FinishKind.STOP, "", 2)),
        ("b,a,b", {"stop_token_ids": (2,), "min_new_tokens": 2}, ([2, 1, 2], "ba", FinishKind.STOP, "", 2)),
        ("a,b,c", {"stop": ("b",)}, ([1, 2], "a", FinishKind.STOP, "b", None)),
        ("a,bc,a", {"stop": ("ab",)}, ([1, 5], "", FinishKind.STOP, "ab", None)),
        ("c,ab,c,a", {"stop": ("bc", "bca")}, ([3, 4, 3], "ca", FinishKind.STOP, "bc", None)),
        ("c,a,bc", {"stop": ("c", "ab"), "min_new_tokens": 2}, ([3, 1, 5], "c", FinishKind.STOP, "ab", None)),
        ("a,b,a,b", {"stop": ("ab",), "min_new_tokens": 3}, ([1, 2, 1, 2], "ab", FinishKind.STOP, "ab", None)),
        ("a,b", {"stop": ("b",), "stop_token_ids": (2,)}, ([1, 2], "a", FinishKind.STOP, "", 2)),
        ("a,b", {"stop": ("zz",)}, ([1, 2], "ab", FinishKind.LENGTH, "", None)),
    ],
)
def test_compose(said: str, sampling: dict, expected: tuple) -> None:
    tokens, vocabulary = letters(said)
    answer = compose(tokens, Sampling(max_new_tokens=len(tokens), **sampling), vocabulary)
    assert len(answer.texts) == len(answer.tokens)
    found = (answer.tokens, "".join(answer.texts), answer.kind, answer.matched_text, answer.matched_token_id)
    assert found == expected


@given(
    digest=st.integers(0, 2**64 - 1),
    stop=st.lists(st.sampled_from([" ba", "a", " bi bo", "bo b", "be", "ce", " bu ba be"]), max_size=3),
    stop_tokens=st.lists(st.integers(1, 11), max_size=2),
    ignore_eos=st.booleans(),
    skip_special=st.booleans(),
    minimum=st.integers(0, 8),
)
@settings(max_examples=150, deadline=None)
def test_compose_is_what_the_oracle_says(digest, stop, stop_tokens, ignore_eos, skip_special, minimum) -> None:
    oracle = Oracle(page_size=4, layers=1, head_bytes=8, tp_size=1, vocab=12, context_tokens=100)
    sampling = Sampling(
        max_new_tokens=20,
        stop=tuple(stop),
        stop_token_ids=tuple(stop_tokens),
        ignore_eos=ignore_eos,
        min_new_tokens=minimum,
        skip_special_tokens=skip_special,
    )
    predicted = oracle.predict(
        PROMPT,
        20,
        stop=stop,
        stop_tokens=stop_tokens,
        ignore_eos=ignore_eos,
        min_new_tokens=minimum,
        skip_special=skip_special,
        digest=digest,
    )
    answer = compose(oracle.tokens(digest, 20), sampling, built_in(12))
    assert (answer.tokens, "".join(answer.texts)) == (predicted.tokens, predicted.text)
    assert answer.kind.value == predicted.kind
    assert (answer.matched_text, answer.matched_token_id) == (predicted.matched_text, predicted.matched_token)


async def test_engine_ends_by_end_of_text_stop_and_limit(start_pair) -> None:
    pair = await start_pair(vocab=12)
    oracle = oracle_of(pair.settings)
    kinds = set()
    for seed in range(12):
        prompt = prompt_of(seed, 6)
        stop = (" ba bi",) if seed % 2 else ()
        room = await pair.ask(prompt, Sampling(max_new_tokens=16, stop=stop))
        finish = await room.decode.finish()
        predicted = oracle.predict(prompt, 16, stop=stop)
        assert (room.decode.tokens, room.decode.text) == (predicted.tokens, predicted.text)
        assert (finish.kind.value, finish.matched_text) == (predicted.kind, predicted.matched_text)
        assert finish.matched_token_id == predicted.matched_token
        kinds.add(finish.kind)
        await room.prefill.finish()
    assert kinds == {FinishKind.STOP, FinishKind.LENGTH}
    await pair.idle()


async def test_context_limits_the_answer(start_pair) -> None:
    pair = await start_pair(context_tokens=20)
    prompt = list(range(15))
    room = await pair.ask(prompt, Sampling(max_new_tokens=50, ignore_eos=True))
    assert (await room.decode.finish()).kind is FinishKind.LENGTH
    assert room.decode.tokens == oracle_of(pair.settings).predict(prompt, 50, ignore_eos=True).tokens
    assert len(room.decode.tokens) == 5


async def test_one_token_and_logprobs(start_pair) -> None:
    pair = await start_pair()
    options = LogprobOptions(top=3, prompt=True, prompt_start=0)
    room = await pair.ask(PROMPT, Sampling(max_new_tokens=1, ignore_eos=True), logprobs=options)
    await room.decode.finish()
    (delta,) = room.decode.deltas
    (logprob,) = delta.logprobs
    assert logprob.token_id == delta.token_ids[0]
    assert len(logprob.top) == 3
    assert logprob.top[0] == (logprob.token_id, logprob.logprob)
    assert [value for _, value in logprob.top] == sorted((value for _, value in logprob.top), reverse=True)
    assert [each.token_id for each in delta.prompt_logprobs] == PROMPT
    assert [each.logprob is None for each in delta.prompt_logprobs] == [True, False, False, False, False]


def test_tokenizer_gives_words_and_the_end(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: place for place, letter in enumerate(letters)} | {"Ġa": 256, "ab": 257}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, [("Ġ", "a"), ("a", "b")]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    vocabulary = from_tokenizer(tmp_path)
    assert vocabulary.end == 258
    assert vocabulary.special == {258}
    choices = vocabulary.choices.tolist()
    assert choices[0] == 258
    assert {256, 257} < set(choices)
    said = choices[1:]
    joined = "".join(vocabulary.texts(said, skip_special=True))
    assert joined == tokenizer.decode(said)
    assert "\ufffd" not in joined
    assert len(said) < 258  # halves of characters are never emitted
