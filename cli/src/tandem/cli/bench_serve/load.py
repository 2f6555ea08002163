"""The open loop: sends each request when its time comes, whatever has become of those before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from tandem.cli.bench_serve.numbers import DROPPED, Outcome
from tandem.cli.bench_serve.reading import AnswerReader
from tandem.cli.bench_serve.workload import Question


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    sent: int = 0
    ended: int = 0
    failed: int = 0
    dropped: int = 0

    @property
    def in_flight(self) -> int:
        """Sent and not ended."""
        return self.sent - self.ended


Prepared = TypeVar("Prepared")
"""A question as it is sent."""
Planned = tuple[float, Question]
"""Seconds after the start, and what to ask then."""


async def run_load(
    planned: Iterable[Planned],
    prepare: Callable[[Question], Prepared],
    ask: Callable[[Prepared], Awaitable[AnswerReader]],
    max_in_flight: int,
    changed: Callable[[Progress], None] = lambda _: None,
) -> list[Outcome]:
    """Sends all, in the order of their times, and waits for their ends; `ask` bounds those.

    Requests are prepared before their time. A request that finds max_in_flight others unanswered is not sent; its
    outcome has the error DROPPED.
    """
    progress, outcomes = Progress(), list[Outcome | None]()
    start = time.perf_counter()

    async def one(number: int, at_s: float, question: Question, prepared: Prepared) -> None:
        answer = await ask(prepared)
        outcomes[number] = _outcome(at_s, start, question, answer)
        progress.ended += 1
        progress.failed += bool(answer.error)
        changed(progress)

    async with asyncio.TaskGroup() as group:
        for number, (at_s, question) in enumerate(planned):
            prepared = prepare(question)
            await asyncio.sleep(max(0.0, start + at_s - time.perf_counter()))
            outcomes.append(None)
            if progress.in_flight >= max_in_flight:
                progress.dropped += 1
                now_s = time.perf_counter() - start
                outcomes[number] = Outcome(at_s, now_s, now_s, question.new_tokens, DROPPED)
            else:
                progress.sent += 1
                group.create_task(one(number, at_s, question, prepared))
            changed(progress)
    return [outcome for outcome in outcomes if outcome is not None]


def _outcome(at_s: float, start: float, question: Question, answer: AnswerReader) -> Outcome:
    return Outcome(
        at_s=at_s,
        sent_s=answer.sent_s - start,
        ended_s=answer.ended_s - start,
        asked_tokens=question.new_tokens,
        error=answer.error,
        ttft_ms=answer.ttft_ms,
        gaps_ms=tuple(answer.gaps_ms),
        prompt_tokens=answer.prompt_tokens or question.prompt_tokens,
        new_tokens=answer.new_tokens,
        cached_tokens=answer.cached_tokens,
    )
