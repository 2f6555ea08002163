"""One call of `tandem bench serve`: warm-up, repeats, and what is kept of them."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from tandem.cli.bench_serve.apis import Asking, body_of
from tandem.cli.bench_serve.arrivals import Times, replayed, times
from tandem.cli.bench_serve.choices import Arrivals
from tandem.cli.bench_serve.client import Target, ask, resolved
from tandem.cli.bench_serve.document import ClientCost, Repeat
from tandem.cli.bench_serve.load import Planned, Prepared, Progress, run_load
from tandem.cli.bench_serve.reading import AnswerReader
from tandem.cli.bench_serve.traces import TraceRow, read_trace
from tandem.cli.bench_serve.workload import Question, Shape, clipped, of_trace, synthetic
from tandem.core.errors import ErrorReason, TandemError

MAX_REQUESTS: Final = 1_000_000
"""Of one repeat."""
WARM_UP_SEED: Final = 1 << 40
"""Prompts of the warm-up share nothing with those that are measured."""
SPARE_FILES: Final = 64
"""Descriptors that the generator needs beside one for each request in flight."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to send, and its limits."""

    shape: Shape
    trace: tuple[TraceRow, ...]
    """Not empty: in place of the shape and of the rate."""
    arrivals: Arrivals
    rate_per_s: float
    speed: float
    """Of the trace."""
    requests: int
    """Of a repeat, at most."""
    duration_s: float
    """Requests that were to be sent later are left out; 0: no bound."""
    max_prompt_tokens: int
    max_new_tokens: int
    max_in_flight: int
    timeout_s: float
    """Of one request."""


def read_trace_file(path: Path) -> tuple[TraceRow, ...]:
    """Raises INVALID_ARGUMENT."""
    try:
        with path.open(encoding="utf-8") as lines:
            rows = tuple(read_trace(lines))
    except (OSError, UnicodeDecodeError) as error:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{path} can't be read: {error}", field="trace") from error
    if not rows:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{path} has no request", field="trace")
    return rows


def planned(load: Load, seed: int) -> tuple[list[Planned], int]:
    """What one repeat sends and when, and how many requests of the trace its limits leave out."""
    rows, left_out = streamed(load, seed)
    return list(rows), left_out


def streamed(load: Load, seed: int) -> tuple[Iterator[Planned], int]:
    """The same, one after the other: of requests that have not come yet no more than their times is kept."""
    dice = np.random.default_rng(seed)
    moments, questions = _moments(load, dice), _questions(load, seed, dice)
    kept = moments[: load.requests]
    if load.duration_s:
        kept = kept[kept < load.duration_s]
    clip = (clipped(question, load.max_prompt_tokens, load.max_new_tokens) for question in questions)
    rows = zip(map(float, kept), islice(clip, len(kept)), strict=True)
    return rows, len(load.trace) and len(moments) - len(kept)


def _moments(load: Load, dice: np.random.Generator) -> Times:
    if load.trace:
        return replayed([row.at_s for row in load.trace], load.speed)
    return times(load.arrivals, load.rate_per_s, load.requests, dice)


def _questions(load: Load, seed: int, dice: np.random.Generator) -> Iterator[Question]:
    return of_trace(load.trace, seed) if load.trace else synthetic(load.shape, seed, dice)


def allow_files(max_in_flight: int) -> None:
    """Raises this process's limit on open files as far as it may, and INVALID_ARGUMENT if that is not far enough."""
    wanted = max_in_flight + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT,
            f"--max-in-flight {max_in_flight} needs {wanted} open files, {hard} are allowed (ulimit -Hn)",
            field="max_in_flight",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def measure(
    target: Target,
    asking: Asking,
    load: Load,
    seeds: range,
    warm_up: int,
    changed: Callable[[int, int, Progress], None] = lambda *_: None,
) -> list[Repeat]:
    """All repeats, one after the other. changed: number of the repeat, its requests, how far it is.

    Raises TandemError if the target can't be reached, or answers none of the warm-up's requests.
    """
    allow_files(load.max_in_flight)
    target = await resolved(target)

    def prepare(question: Question) -> tuple[bytes, str]:
        return body_of(asking, question), question.session_name if asking.sessions else ""

    async def send(prepared: tuple[bytes, str]) -> AnswerReader:
        body, session = prepared
        return await ask(target, body, load.timeout_s, session=session)

    await _warm_up([prepare(question) for _, question in islice(planned(load, WARM_UP_SEED)[0], warm_up)], send)
    repeats = []
    for number, seed in enumerate(seeds):
        rows, left_out = planned(load, seed)
        if not rows:
            raise TandemError(ErrorReason.INVALID_ARGUMENT, "no request comes in --duration-s", field="duration_s")
        began, cpu = time.perf_counter(), time.process_time()

        def tell(progress: Progress, number: int = number, count: int = len(rows)) -> None:
            changed(number, count, progress)

        outcomes = await run_load(rows, prepare, send, load.max_in_flight, tell)
        share = (time.process_time() - cpu) / (time.perf_counter() - began)
        repeats.append(Repeat(seed, tuple(outcomes), ClientCost(round(share, 4), left_out)))
    return repeats


async def _warm_up(requests: list[Prepared], send: Callable[[Prepared], Awaitable[AnswerReader]]) -> None:
    answers = await asyncio.gather(*map(send, requests))
    if answers and all(answer.error for answer in answers):
        raise TandemError(
            ErrorReason.ENGINE_FAILED, f"the server answers no request of the warm-up: {answers[0].error}"
        )
