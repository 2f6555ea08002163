"""Asks a system that is otherwise idle, and notes what prompts and steps take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from tandem.cli.bench_serve.reading import AnswerReader
from tandem.cli.bench_serve.workload import Piece, Question
from tandem.cli.calibrate.fit import PromptSample, StepSample
from tandem.core.errors import ErrorReason, TandemError

Send = Callable[[Question], Awaitable[AnswerReader]]
_PROBE_TOKENS = 3
"""New tokens of a prompt that is measured alone: the second comes when its KV has moved."""


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """What is asked."""

    prompts: Sequence[int]
    """Tokens of prompts that come alone."""
    batches: Sequence[int]
    """Answers that decode together."""
    contexts: Sequence[int]
    """Prompts of these batches."""
    new_tokens: int = 64
    """Of the answers that decode together; at least 8."""
    repeats: int = 5


async def probe_prompts(plan: ProbePlan, send: Send, seed: int) -> list[PromptSample]:
    """One prompt after the other; of the repeats of a length the median. Raises TandemError if an answer failed."""
    keys, samples = _keys(seed), []
    await _whole(send, _question(next(keys), plan.prompts[0], _PROBE_TOKENS))
    for tokens in plan.prompts:
        seen = []
        for _ in range(plan.repeats):
            answer = await _whole(send, _question(next(keys), tokens, _PROBE_TOKENS))
            if answer.gaps_ms:
                seen.append((answer.ttft_ms, answer.gaps_ms[0]))
        if not seen:
            raise TandemError(ErrorReason.ENGINE_FAILED, f"no answer to a prompt of {tokens} tokens had two pieces")
        ttft_ms, gap_ms = np.median(np.asarray(seen), axis=0)
        samples.append(PromptSample(tokens, float(ttft_ms) / 1000, float(gap_ms) / 1000))
    return samples


async def probe_steps(plan: ProbePlan, send: Send, seed: int) -> list[StepSample]:
    """Batches of answers, all asked at once. A step is what a token took after each answer's first two."""
    keys, samples = _keys(seed + 1), []
    for sequences in plan.batches:
        for context in plan.contexts:
            seen = []
            for _ in range(plan.repeats):
                asked = [_question(next(keys), context, plan.new_tokens) for _ in range(sequences)]
                answers = await asyncio.gather(*(_whole(send, question) for question in asked))
                seen += [sum(one.gaps_ms[1:]) / 1000 / (one.new_tokens - 2) for one in answers if one.new_tokens > 2]
            if not seen:
                raise TandemError(ErrorReason.ENGINE_FAILED, "no answer had more than two tokens")
            tokens = sequences * (context + plan.new_tokens / 2)
            samples.append(StepSample(sequences, tokens, float(np.median(seen))))
    return samples


async def _whole(send: Send, question: Question) -> AnswerReader:
    answer = await send(question)
    if answer.error:
        raise TandemError(
            ErrorReason.ENGINE_FAILED, f"a prompt of {question.prompt_tokens} tokens failed: {answer.error}"
        )
    return answer


def _question(key: tuple[int, int, int], tokens: int, new_tokens: int) -> Question:
    return Question((Piece(key, tokens),), new_tokens)


def _keys(seed: int) -> Iterator[tuple[int, int, int]]:
    """Prompts that share nothing."""
    return ((seed, 2, number) for number in count())
