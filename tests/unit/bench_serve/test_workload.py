"""What is asked."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.cli.bench_serve.choices import WorkloadName
from tandem.cli.bench_serve.traces import TraceRow
from tandem.cli.bench_serve.workload import (
    LOWEST_TOKEN,
    SHAPES,
    Piece,
    Question,
    clipped,
    of_trace,
    shaped,
    synthetic,
    token_ids,
)

PIECES = st.lists(st.builds(Piece, st.tuples(*[st.integers(0, 9)] * 3), st.integers(1, 50)), min_size=1, max_size=8)


def questions(name: WorkloadName, count: int, seed: int = 0) -> list[Question]:
    return list(islice(synthetic(SHAPES[name], seed, np.random.default_rng(seed)), count))


def ids(question: Question) -> list[int]:
    return [token for piece in question.pieces for token in token_ids(piece, 1000)]


@pytest.mark.parametrize("name", WorkloadName)
def test_a_workload_follows_from_its_seed_and_shares_nothing_with_another(name: WorkloadName) -> None:
    one, again, other = questions(name, 40), questions(name, 40), questions(name, 40, seed=1)
    assert one == again
    assert not {piece.key for question in one for piece in question.pieces} & {
        piece.key for question in other for piece in question.pieces
    }
    assert all(question.new_tokens >= 1 and question.prompt_tokens >= 1 for question in one)


def test_random_prompts_share_nothing() -> None:
    keys = [piece.key for question in questions(WorkloadName.RANDOM, 100) for piece in question.pieces]
    assert len(keys) == len(set(keys)) == 100


@pytest.mark.parametrize("name", [WorkloadName.CHAT, WorkloadName.AGENT])
def test_a_conversation_grows_by_an_answer_and_a_turn_up_to_its_last(name: WorkloadName) -> None:
    shape, found = SHAPES[name], questions(name, 1000)
    longest = 0
    for number, question in enumerate(found):
        # Each prompt but a first one begins with an earlier prompt and its answer.
        turns = (len(question.pieces) - 2) // 2
        assert turns < shape.turns
        longest = max(longest, turns)
        if turns:
            before = next(one for one in found[:number] if one.pieces == question.pieces[:-2])
            assert question.pieces[-2].tokens == before.new_tokens
    assert longest == shape.turns - 1
    assert len({question.pieces[0] for question in found}) == 1, "all share the system prompt"


def test_rag_shares_documents_and_asks_fresh_questions() -> None:
    found = questions(WorkloadName.RAG, 400)
    shape = SHAPES[WorkloadName.RAG]
    drawn = [piece.key for question in found for piece in question.pieces[1:-1]]
    assert len(drawn) == 400 * shape.documents_per_prompt
    assert len({question.pieces[-1].key for question in found}) == 400
    counts = sorted((drawn.count(key) for key in set(drawn)), reverse=True)
    assert len(counts) <= shape.documents
    assert counts[0] > 3 * counts[len(counts) // 2], "some documents are asked for much more often"


def test_lengths_lie_around_their_mean() -> None:
    shape = shaped(WorkloadName.RANDOM, 100, 10, 0.5)
    found = list(islice(synthetic(shape, 0, np.random.default_rng(0)), 2000))
    prompts = [question.prompt_tokens for question in found]
    assert (min(prompts), max(prompts)) == (50, 150)
    assert np.mean(prompts) == pytest.approx(100, rel=0.03)
    assert {question.new_tokens for question in found} == set(range(5, 16))


def test_prompts_of_a_trace_share_what_its_hash_ids_share() -> None:
    rows = [TraceRow(0, 1100, 5, (1, 2, 3)), TraceRow(1, 1300, 6, (1, 2, 4)), TraceRow(2, 700, 7), TraceRow(3, 700, 7)]
    first, second, third, fourth = map(ids, of_trace(rows, 0))
    assert [len(one) for one in (first, second, third, fourth)] == [1100, 1300, 700, 700]
    assert first[:1024] == second[:1024]
    assert first[1024:] != second[1024:1100]
    assert third != fourth
    assert [one.new_tokens for one in of_trace(rows, 0)] == [5, 6, 7, 7]


@settings(deadline=None)
@given(PIECES, st.integers(1, 100), st.integers(1, 100))
def test_a_clipped_prompt_is_the_beginning_of_the_whole(pieces: list[Piece], prompt: int, new: int) -> None:
    whole = Question(tuple(pieces), 50)
    short = clipped(whole, prompt, new)
    assert ids(short) == ids(whole)[:prompt]
    assert short.new_tokens == min(50, new)
    assert all(piece.tokens for piece in short.pieces)


@settings(deadline=None)
@given(st.integers(LOWEST_TOKEN + 1, 200_000), st.integers(1, 300))
def test_tokens_are_of_the_vocabulary_and_follow_from_the_key(vocabulary: int, count: int) -> None:
    found = token_ids(Piece((1, 2, 3), count), vocabulary)
    assert len(found) == count
    assert min(found) >= LOWEST_TOKEN
    assert max(found) < vocabulary
    assert found == token_ids(Piece((1, 2, 3), count + 7), vocabulary)[:count]
