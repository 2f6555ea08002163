"""Asks a system that is otherwise idle, and notes what prompts and steps take."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tandem.cli.bench_serve.reading import AnswerReader
from tandem.cli.bench_serve.workload import Piece, Question
from tandem.cli.calibrate.fit import BurstSample, PromptSample, StepSample
from tandem.core.errors import ErrorReason, TandemError

Send = Callable[[Question], Awaitable[AnswerReader]]
_PROBE_TOKENS: Final = 3
"""New tokens of a prompt that is measured alone: the second comes when its KV has moved."""
_KIND: Final = 3
"""Of a piece of a prompt: none of the kinds of `tandem bench serve`."""
_MOST_NEW_TOKENS: Final = 4096
"""Of an answer that has to last until the last of its batch has begun."""


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
    """That each of the answers makes while all of a batch decode together; at least 8."""
    repeats: int = 5
    burst: int = 8
    """Prompts of the longest length that come at once; 0 = none do."""


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


async def probe_bursts(plan: ProbePlan, send: Send, seed: int) -> list[BurstSample]:
    """Prompts of a middle length, and of the longest, several at once: what one waits for those before it is what they
    keep prefill busy."""
    keys, samples = _keys(seed + 2), []
    lengths = sorted(plan.prompts)
    for tokens in sorted({lengths[len(lengths) // 2], lengths[-1]}):
        for _ in range(plan.repeats if plan.burst > 1 else 0):
            # The first ones decode while the last are computed, as under load: a busy machine is a slower one.
            answers = await _at_once(send, keys, tokens, plan.new_tokens, plan.burst)
            firsts = sorted(one.sent_s + one.ttft_ms / 1000 for one in answers)
            samples += busy_of(tokens, firsts, min(one.sent_s for one in answers))
    return samples


def busy_of(tokens: int, first_tokens_s: Sequence[float], sent_s: float) -> list[BurstSample]:
    """Of prompts that came at once, from the end of their first batch to that of the last: which of them an engine put
    into a batch is seen by their first tokens, as far as these are apart. None if all came together.

    first_tokens_s: when each came, in order. sent_s: when the prompts were sent.
    """
    apart_s = (first_tokens_s[-1] - sent_s) / len(first_tokens_s) / 2
    ends = [place for place, gap_s in enumerate(np.diff(first_tokens_s), 1) if gap_s > apart_s]
    if not ends:
        return []
    busy_s = first_tokens_s[-1] - first_tokens_s[ends[0] - 1]
    return [BurstSample(tokens, len(first_tokens_s) - ends[0], len(ends), busy_s)]


async def probe_steps(plan: ProbePlan, send: Send, seed: int) -> list[StepSample]:
    """Batches of answers, all asked at once. A step is what a token took while all of them decoded: answers are longer
    where the prompts of a batch are not there at the same time."""
    keys, samples = _keys(seed + 1), []
    for sequences in plan.batches:
        for context in plan.contexts:
            new_tokens = plan.new_tokens
            seen, offs = list[StepSample](), list[float]()
            while len(seen) < plan.repeats:
                answers = await _at_once(send, keys, context, new_tokens, sequences)
                if (wanted := plan.new_tokens + _steps_apart(answers)) > new_tokens < _MOST_NEW_TOKENS:
                    new_tokens = min(_MOST_NEW_TOKENS, math.ceil(wanted * 1.25))
                    continue
                seen.append(_together(answers, context))
                offs += seen[-1].off_s
            step_s, tokens = np.median([(one.step_s, one.context_tokens) for one in seen], axis=0)
            samples.append(StepSample(sequences, float(tokens), float(step_s), tuple(offs)))
    return samples


def _steps_apart(answers: Sequence[AnswerReader]) -> int:
    """Steps that the first of some answers made before the last began to decode."""
    decoded = [_times_s(one)[1:] for one in answers]
    begun = [times[0] for times in decoded]
    shortest_s = min((times[-1] - times[0]) / (len(times) - 1) for times in decoded)
    return math.ceil(float(max(begun) - min(begun)) / float(shortest_s))


def _together(answers: Sequence[AnswerReader], context: int) -> StepSample:
    """What a step took while all of them decoded."""
    every = [_times_s(one) for one in answers]
    start, end = max(times[1] for times in every), min(times[-1] for times in every)
    steps, offs, tokens = [], list[float](), 0.0
    for times, answer in zip(every, answers, strict=True):
        inside = np.flatnonzero((times >= start) & (times <= end))
        if len(inside) < 3:
            raise TandemError(ErrorReason.ENGINE_FAILED, f"{len(answers)} answers did not decode together long enough")
        # A piece of a stream may hold more than one token.
        per_piece = (answer.new_tokens - 1) / (len(times) - 1)
        gaps = np.diff(times[inside])
        steps.append(float(gaps.mean()) / per_piece)
        offs += (gaps - gaps.mean()).tolist()
        tokens += context + float(inside.mean()) * per_piece
    return StepSample(len(answers), tokens, float(np.median(steps)), tuple(offs))


def _times_s(answer: AnswerReader) -> NDArray[np.float64]:
    """When its pieces came. Raises ENGINE_FAILED if there are fewer than three."""
    if len(answer.gaps_ms) < 2:
        raise TandemError(ErrorReason.ENGINE_FAILED, "an answer had fewer than three pieces")
    return answer.sent_s + np.cumsum([answer.ttft_ms, *answer.gaps_ms]) / 1000


async def _at_once(
    send: Send, keys: Iterator[tuple[int, int, int]], tokens: int, new_tokens: int, count: int
) -> list[AnswerReader]:
    asked = [_question(next(keys), tokens, new_tokens) for _ in range(count)]
    return await asyncio.gather(*(_whole(send, question) for question in asked))


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
    """Prompts that share nothing, with those of `tandem bench serve` neither: a system may keep what was asked."""
    return ((seed, _KIND, number) for number in count())
