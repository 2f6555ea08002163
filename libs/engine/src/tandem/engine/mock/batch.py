"""What generates: one token per step for every room in the batch. Rooms join and leave it between two steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from tandem.core.errors import ErrorReason, TandemError
from tandem.engine.mock import answer as answers
from tandem.engine.mock import arithmetic
from tandem.engine.mock.answer import Answer
from tandem.engine.mock.leases import Leases
from tandem.engine.mock.legs import Leg, LegBook, Port, Stage
from tandem.engine.mock.settings import MockSettings
from tandem.engine.mock.vocabulary import Vocabulary
from tandem.engine.port import Delta, Finish, Job, TokenLogprob


def whole_tokens(job: Job, settings: MockSettings) -> int:
    """Prompt and answer, at most."""
    return min(len(job.input_ids) + job.sampling.max_new_tokens, settings.context_tokens)


def check_whole(job: Job, leases: Leases, settings: MockSettings) -> None:
    """Raises TandemError(POOL_EXHAUSTED) for a room that can never have enough pages for both."""
    need = leases.pages_for(whole_tokens(job, settings))
    if need > leases.pages.total:
        raise TandemError(
            ErrorReason.POOL_EXHAUSTED,
            f"prompt and answer need {need} pages, the pool has {leases.pages.total}",
            field="max_new_tokens",
        )


@dataclass(frozen=True, slots=True)
class _Sequence(Generic[Port]):
    """A room that generates."""

    leg: Leg[Port]
    answer: Answer
    chain: int
    cached_tokens: int


class Batch(Generic[Port]):
    """The rooms that generate."""

    def __init__(
        self,
        settings: MockSettings,
        vocabulary: Vocabulary,
        book: LegBook[Port],
        on_generated: Callable[[Leg[Port], list[int]], None] = lambda *_: None,
    ) -> None:
        """on_generated: gets a room that ends well, and its whole answer, while it holds its pages."""
        self.device = asyncio.Lock()
        """Held while a step is computed; whoever else computes on the same device holds it meanwhile."""
        self._settings = settings
        self._vocabulary = vocabulary
        self._book = book
        self._on_generated = on_generated
        self._rooms: dict[int, _Sequence[Port]] = {}
        self._work = asyncio.Event()

    @property
    def running(self) -> int:
        """Rooms in it."""
        return len(self._rooms)

    async def run(self) -> None:
        """Steps for as long as the engine lives; sleeps while nothing runs."""
        loop = asyncio.get_running_loop()
        due = 0.0
        while True:
            if not self._rooms:
                self._work.clear()
                await self._work.wait()
            async with self.device:
                stepping = tuple(self._rooms.values())
                cost_us = self._settings.decode_us_per_step + len(stepping) * self._settings.decode_us_per_sequence
                due = max(due, loop.time()) + cost_us / 1e6
                await asyncio.sleep(due - loop.time())
            for sequence in stepping:
                self._emit(sequence)

    def begin(self, leg: Leg[Port], digest: int, first_token: int, cached_tokens: int) -> None:
        """A room's prompt is there, and its first token; it says that one now. digest: of the prompt's KV."""
        chain = arithmetic.chain_of(digest, first_token)
        more = whole_tokens(leg.job, self._settings) - len(leg.job.input_ids) - 1
        later = arithmetic.later_tokens(chain, more, self._vocabulary.choices)
        answer = answers.compose([first_token, *later], leg.job.sampling, self._vocabulary)
        sequence = _Sequence(leg, answer, chain, cached_tokens)
        leg.stage = Stage.RUNNING
        self._rooms[leg.room] = sequence
        self._work.set()
        self._emit(sequence)

    def drop(self, leg: Leg[Port]) -> None:
        """A room has ended."""
        self._rooms.pop(leg.room, None)

    def _emit(self, sequence: _Sequence[Port]) -> None:
        leg, answer = sequence.leg, sequence.answer
        if leg.stage is not Stage.RUNNING:
            return  # another room's sink has just aborted it
        place = leg.emitted
        leg.emitted += 1
        token, options = answer.tokens[place], leg.job.logprobs
        logprobs: tuple[TokenLogprob, ...] = ()
        prompt_logprobs: tuple[TokenLogprob, ...] = ()
        if options is not None:
            logprobs = (answers.logprob_of(sequence.chain, place, token, options, self._vocabulary),)
            if place == 0:
                prompt_logprobs = answers.prompt_logprobs(leg.job.input_ids, options, self._vocabulary)
        if leg.emitted < len(answer.tokens):
            leg.sink(Delta(leg.room, (token,), answer.texts[place], logprobs, prompt_logprobs))
            return
        finish = Finish(
            answer.kind,
            len(leg.job.input_ids),
            leg.emitted,
            sequence.cached_tokens,
            answer.matched_text,
            answer.matched_token_id,
        )
        self._on_generated(leg, answer.tokens)
        self._book.end(leg, Delta(leg.room, (token,), answer.texts[place], logprobs, prompt_logprobs, finish))
